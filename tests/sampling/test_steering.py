"""`steer` in a hand-written sampling loop, for every scheduler that it supports."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from fk_reward import steer
from fk_reward.pipelines import FlowMatchSDEScheduler
from fk_reward.sampling.row_state import SchedulerHistory
from fk_reward.sampling.stochasticity import require_stochastic
from fk_reward.sampling.x0_prediction import predict_x0
from fk_reward.search import FKPopulation
from tests.sampling.scheduler_cases import CASES, FAMILIES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.steering_configs import early

NUM_PARTICLES = 4
CONFIG = early(num_particles=NUM_PARTICLES, potential="immediate", ess_threshold=1.0, reward_scale=1.0)
EVERY_STEP = replace(CONFIG, resample_start=0.0, resample_stop=0.8, num_resamples=9)


def generators():
    return [torch.Generator().manual_seed(100 + slot) for slot in range(NUM_PARTICLES)]


def score(x0_pred):
    means = x0_pred.mean(dim=(1, 2, 3)).float()
    return (means - means.mean()) / means.std()  # of order one, so that several particles survive each step


def steered_loop(scheduler, arguments, particle_filter, *, score_fn=score):
    sample = initial_sample(scheduler, NUM_PARTICLES)
    slots = generators()
    with steer(scheduler, particle_filter, score_fn) as records:
        for timestep in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
            sample = scheduler.step(output, timestep, sample, generator=slots, **arguments).prev_sample
    return sample, records


def one_by_one_loop(name, kind, ancestors_by_step):
    """The same run with one scheduler a particle, each with its own history: resampling copies whole schedulers."""
    slots = generators()
    schedulers = [make_scheduler(name, kind)[0] for _ in range(NUM_PARTICLES)]
    arguments = make_scheduler(name, kind)[1]
    samples = list(initial_sample(schedulers[0], NUM_PARTICLES).split(1))
    for index, timestep in enumerate(schedulers[0].timesteps):
        outputs = [toy_model(scaled_input(s, x, timestep), timestep) for s, x in zip(schedulers, samples, strict=True)]
        chosen = ancestors_by_step.get(index, range(NUM_PARTICLES))
        schedulers = [copy.deepcopy(schedulers[i]) for i in chosen]
        samples, outputs = [samples[i] for i in chosen], [outputs[i] for i in chosen]
        samples = [
            schedulers[i].step(outputs[i], timestep, samples[i], generator=[slots[i]], **arguments).prev_sample
            for i in range(NUM_PARTICLES)
        ]
    return torch.cat(samples)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_equals_particles_run_one_by_one(name, kind):
    scheduler, arguments = make_scheduler(name, kind)
    particle_filter = FKPopulation(EVERY_STEP, generator=torch.Generator().manual_seed(5))
    sample, records = steered_loop(scheduler, arguments, particle_filter)
    resampled = {r.step: r.ancestors[0].tolist() for r in records if r.ancestors is not None}
    moved = [step for step, chosen in resampled.items() if chosen != list(range(NUM_PARTICLES))]
    assert max(moved) > 0, "nothing was resampled while there was a history"
    torch.testing.assert_close(sample, one_by_one_loop(name, kind, resampled), rtol=1e-5, atol=1e-5)
    assert len(torch.unique(sample.flatten(1), dim=0)) == NUM_PARTICLES, "copies stayed identical"


def cogvideox_loop(particle_filter, ancestors_by_step=None):
    """CogView3-Plus's loop, which hands the prediction of the step before over; steered, or copied by hand."""
    scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction", snr_shift_scale=3.0)
    scheduler.set_timesteps(10)
    sample, history, slots = initial_sample(scheduler, NUM_PARTICLES), None, generators()
    with steer(scheduler, particle_filter, score) as records:
        for index, timestep in enumerate(scheduler.timesteps):
            output = toy_model(sample, timestep)
            before = scheduler.timesteps[index - 1] if index else None
            if ancestors_by_step is not None and index in ancestors_by_step:
                rows = ancestors_by_step[index]
                sample, output, history = sample[rows], output[rows], None if history is None else history[rows]
            sample, history = scheduler.step(output, history, timestep, before, sample, generator=slots)
    return sample, {r.step: r.ancestors[0].tolist() for r in records if r.ancestors is not None}


def test_a_history_that_the_loop_hands_over_is_gathered():
    sample, resampled = cogvideox_loop(FKPopulation(EVERY_STEP, generator=torch.Generator().manual_seed(5)))
    assert max(step for step, chosen in resampled.items() if chosen != list(range(NUM_PARTICLES))) > 0
    by_hand, _ = cogvideox_loop(FKPopulation(replace(EVERY_STEP, num_resamples=0)), resampled)
    torch.testing.assert_close(sample, by_hand, rtol=1e-5, atol=1e-5)


def test_the_loss_of_that_history_is_noticed(monkeypatch):
    monkeypatch.setattr("fk_reward.sampling.steering._HANDED_HISTORY", "no such argument")
    with pytest.raises(AssertionError):
        test_a_history_that_the_loop_hands_over_is_gathered()


@pytest.mark.parametrize("name", ["dpm-sde-2", "dpm-singlestep-2"])
def test_a_history_that_is_not_gathered_fails_the_same_check(name, monkeypatch):
    monkeypatch.setattr(SchedulerHistory, "gather", lambda *args: None)
    with pytest.raises(AssertionError):
        test_equals_particles_run_one_by_one(name, "epsilon")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rewards_that_are_equal_change_nothing(name, kind):
    scheduler, arguments = make_scheduler(name, kind)
    steered, _ = steered_loop(
        scheduler, arguments, FKPopulation(EVERY_STEP), score_fn=lambda x0_pred: torch.ones(len(x0_pred))
    )
    scheduler, arguments = make_scheduler(name, kind)
    sample, slots = initial_sample(scheduler, NUM_PARTICLES), generators()
    for timestep in scheduler.timesteps:
        output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
        sample = scheduler.step(output, timestep, sample, generator=slots, **arguments).prev_sample
    assert torch.equal(steered, sample)


def test_records_are_what_the_filter_saw():
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    seen = []
    particle_filter = FKPopulation(CONFIG)
    with steer(scheduler, particle_filter, score, callback=seen.append) as records:
        sample = initial_sample(scheduler, NUM_PARTICLES)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(toy_model(sample, timestep), timestep, sample, **arguments).prev_sample
    assert seen == records
    assert [r.step for r in records] == [2, 4, 6, 8]
    assert [r.timestep for r in records] == [float(scheduler.timesteps[i]) for i in (2, 4, 6, 8)]
    assert all(r.rewards.shape == r.log_weights.shape == (1, NUM_PARTICLES) for r in records)
    assert all(1 <= float(r.ess) <= NUM_PARTICLES for r in records)


def test_kdpm2_is_scored_where_its_step_adds_noise():
    scheduler, arguments = make_scheduler("kdpm2-ancestral", "epsilon")
    _, records = steered_loop(scheduler, arguments, FKPopulation(CONFIG))
    assert records
    assert all(record.step % 2 == 1 for record in records)  # the second stage of each pair


def test_a_funnel_arrives_where_scoring_steps_wait_for_the_same_noise():
    """KDPM2 adds noise at every other step only, and the last two scoring steps of four fall together."""
    scheduler, arguments = make_scheduler("kdpm2-ancestral", "epsilon", num_steps=4)
    config = replace(CONFIG, final_particles=1)
    assert config.scoring_steps(len(scheduler.timesteps)) == (1, 3, 4, 5)
    particle_filter = FKPopulation(config)
    sample, records = steered_loop(scheduler, arguments, particle_filter)
    assert [record.step for record in records] == [1, 3, 5]
    assert len(sample) == particle_filter.num_particles == 1


def test_signature_is_kept_and_step_is_restored():
    scheduler, _ = make_scheduler("ddim", "epsilon")
    before, attributes = inspect.signature(scheduler.step), set(vars(scheduler))
    with steer(scheduler, FKPopulation(CONFIG), score):
        assert inspect.signature(scheduler.step) == before
        assert "step" in vars(scheduler)
    assert set(vars(scheduler)) == attributes
    assert scheduler.step.__func__ is DDIMScheduler.step


def test_step_is_restored_after_an_error():
    scheduler, arguments = make_scheduler("ddim", "epsilon")

    def broken(x0_pred):
        raise KeyError("no such reward")

    with pytest.raises(KeyError, match="no such reward"):
        steered_loop(scheduler, arguments, FKPopulation(CONFIG), score_fn=broken)
    assert "step" not in vars(scheduler)


def test_steering_twice_at_once_is_refused():
    scheduler, _ = make_scheduler("ddim", "epsilon")
    with steer(scheduler, FKPopulation(CONFIG), score), pytest.raises(RuntimeError, match="steered already"):
        with steer(scheduler, FKPopulation(CONFIG), score):
            pass


DETERMINISTIC = [
    (DDIMScheduler(), {"eta": 0.0}, "Pass eta=1.0"),
    (DDIMScheduler(), {}, "Pass eta=1.0"),
    (TCDScheduler(), {"eta": 0.0}, "Pass eta=1.0"),
    (EulerDiscreteScheduler(), {}, "DDIMScheduler"),
    (PNDMScheduler(), {}, "DDIMScheduler"),
    (UniPCMultistepScheduler(), {}, "DDIMScheduler"),
    (DPMSolverMultistepScheduler(), {}, 'algorithm_type="sde-dpmsolver\\+\\+"'),
    (EDMDPMSolverMultistepScheduler(), {}, 'algorithm_type="sde-dpmsolver\\+\\+"'),
    (
        EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3),
        {},
        "use solver_order=2",
    ),
    (FlowMatchEulerDiscreteScheduler(), {}, "FlowMatchSDEScheduler"),
    (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}, "FlowMatchLCMScheduler"),
    (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3), {}, "use solver_order=2"),
]


@pytest.mark.parametrize(("scheduler", "arguments", "remedy"), DETERMINISTIC)
def test_deterministic_settings_are_refused_with_the_remedy(scheduler, arguments, remedy):
    scheduler.set_timesteps(5)
    sample = torch.zeros(NUM_PARTICLES, 3, 4, 4)
    with steer(scheduler, FKPopulation(CONFIG), score), pytest.raises(ValueError, match=remedy):
        scheduler.step(sample, scheduler.timesteps[0], sample, **arguments)


def test_a_deterministic_scheduler_may_run_where_nothing_is_resampled():
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    sample = torch.zeros(NUM_PARTICLES, 3, 4, 4)
    config = early(num_particles=NUM_PARTICLES, num_resamples=0)
    with steer(scheduler, FKPopulation(config), score) as records:
        scheduler.step(sample, scheduler.timesteps[0], sample)
    assert records == []


def test_batch_of_the_wrong_size_is_refused():
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    sample = torch.zeros(3, 3, 4, 4)
    with steer(scheduler, FKPopulation(CONFIG), score), pytest.raises(ValueError, match="4 samples, got 3"):
        scheduler.step(sample, scheduler.timesteps[0], sample, **arguments)


def test_a_reward_that_is_nan_names_particle_and_step():
    scheduler, arguments = make_scheduler("ddim", "epsilon")

    def broken(x0_pred):
        return torch.tensor([0.0, 0.0, torch.nan, 0.0])

    with pytest.raises(ValueError, match="prompt 0, particle 2 at step 2 is nan"):
        steered_loop(scheduler, arguments, FKPopulation(CONFIG), score_fn=broken)


def test_step_defaults_fill_only_what_is_missing():
    scheduler, _ = make_scheduler("ddim", "epsilon")
    sample = torch.ones(NUM_PARTICLES, 3, 4, 4)
    timestep = scheduler.timesteps[0]
    defaults = {"eta": 1.0, "generator": torch.Generator().manual_seed(1)}
    with steer(scheduler, FKPopulation(CONFIG), score, step_defaults=defaults):
        filled = scheduler.step(sample, timestep, sample).prev_sample
    expected = scheduler.step(sample, timestep, sample, eta=1.0, generator=torch.Generator().manual_seed(1)).prev_sample
    assert torch.equal(filled, expected)
    with (
        steer(scheduler, FKPopulation(CONFIG), score, step_defaults=defaults),
        pytest.raises(ValueError, match="eta=0.0"),
    ):
        scheduler.step(sample, timestep, sample, eta=0.0)


@pytest.mark.parametrize(
    ("scheduler", "custom"),
    [
        (DDPMScheduler(clip_sample=False), {"timesteps": [900, 600, 300, 100, 10]}),
        (FlowMatchSDEScheduler(), {"sigmas": [1.0, 0.8, 0.5, 0.3, 0.1]}),
    ],
)
def test_custom_timesteps_and_sigmas(scheduler, custom):
    scheduler.set_timesteps(**custom)
    _, records = steered_loop(scheduler, {}, FKPopulation(CONFIG))
    assert [record.step for record in records] == [1, 2, 3]


def test_a_trajectory_that_begins_late_counts_its_own_steps():
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(10)
    particle_filter = FKPopulation(CONFIG)
    sample = initial_sample(scheduler, NUM_PARTICLES)
    with steer(scheduler, particle_filter, score) as records:
        for timestep in scheduler.timesteps[10:]:
            sample = scheduler.step(toy_model(sample, timestep), timestep, sample).prev_sample
    assert [record.step for record in records] == [2, 4, 6, 8]


def test_the_history_of_a_scheduler_is_what_has_a_row_for_each_particle():
    class Scheduler:
        def __init__(self):
            self.model_outputs = [None, torch.arange(3.0).view(3, 1, 1, 1)]
            self.sample = torch.arange(3.0).view(3, 1, 1, 1)
            self.sigmas = torch.arange(3.0)
            self.order_list = [1, 2, 3]

    scheduler = Scheduler()
    SchedulerHistory(scheduler).gather(lambda rows: rows[[2, 2, 0]], 3)
    assert scheduler.model_outputs[0] is None
    assert scheduler.model_outputs[1].flatten().tolist() == [2, 2, 0]
    assert scheduler.sample.flatten().tolist() == [2, 2, 0]
    assert scheduler.sigmas.tolist() == [0, 1, 2]
    assert scheduler.order_list == [1, 2, 3]


def test_schedulers_with_a_noise_source_of_their_own_are_refused():
    scheduler = DPMSolverSDEScheduler.__new__(DPMSolverSDEScheduler)
    with pytest.raises(ValueError, match="DPMSolverSDEScheduler cannot be steered"):
        require_stochastic(scheduler)


@pytest.mark.parametrize(("ess_threshold", "warned"), [(0.25, True), (0.26, False), (1.0, False)])
def test_a_threshold_that_the_ess_cannot_fall_below_is_warned_of(ess_threshold, warned, caplog):
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    steered_loop(scheduler, arguments, FKPopulation(replace(CONFIG, ess_threshold=ess_threshold)))
    assert any("nothing will be resampled: this is best of 4" in r.message for r in caplog.records) == warned


def test_no_such_warning_where_the_population_shrinks(caplog):
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    config = replace(CONFIG, ess_threshold=0.25, final_particles=2)
    _, records = steered_loop(scheduler, arguments, FKPopulation(config))
    assert any(record.ancestors is not None for record in records)
    assert not caplog.records


def test_a_trajectory_too_short_to_be_scored(caplog):
    scheduler, arguments = make_scheduler("ddim", "epsilon", num_steps=1)
    _, records = steered_loop(scheduler, arguments, FKPopulation(CONFIG))
    assert records == []
    assert any("1 step has no scoring step, so nothing" in record.message for record in caplog.records)
    with pytest.raises(ValueError, match="final_particles needs a scoring step"):
        steered_loop(scheduler, arguments, FKPopulation(replace(CONFIG, final_particles=2)))


LONG_RUN = early(num_particles=4, reward_scale=1.0, ess_threshold=1.0)
FUNNEL = replace(LONG_RUN, final_particles=1)


def run_loop(scheduler, timesteps, *, config=LONG_RUN, num_steps=None):
    sample, arguments = initial_sample(scheduler, 4), {"eta": 1.0} if isinstance(scheduler, DDIMScheduler) else {}
    score, particle_filter = (lambda x0_pred: x0_pred.mean(dim=(1, 2, 3))), FKPopulation(config)
    with steer(scheduler, particle_filter, score, num_steps=num_steps) as records:
        for t in timesteps:
            output = toy_model(scaled_input(scheduler, sample, t), t)
            sample = scheduler.step(output, t, sample, **arguments).prev_sample
    return sample, records


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()], ids=["ddim", "ddpm"])
@pytest.mark.parametrize(("strength", "steps"), [(0.2, [2, 4, 6, 8]), (0.8, [8, 16, 24, 32])])
def test_a_loop_that_begins_late_is_scored_at_the_fractions_of_what_runs(scheduler, strength, steps):
    """As image-to-image pipelines do with schedulers that have no begin index."""
    scheduler.set_timesteps(50)
    late = scheduler.timesteps[-round(50 * strength) :]
    sample, records = run_loop(scheduler, late, config=FUNNEL)
    assert [record.step for record in records] == steps
    assert records.num_steps == records.expected_steps == len(late)
    assert len(sample) == 1
    assert not records.holds_noise


def test_a_second_order_scheduler_has_more_steps_than_were_asked_for():
    scheduler = KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(10)
    _, records = run_loop(scheduler, scheduler.timesteps)
    assert records.num_steps == records.expected_steps == 19


@pytest.mark.parametrize("num_steps", [4, lambda: 4])
def test_the_caller_may_say_it(num_steps, caplog):
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    sample, records = run_loop(scheduler, scheduler.timesteps[:4], config=FUNNEL, num_steps=num_steps)
    assert [record.step for record in records] == [1, 2]
    assert len(sample) == 1
    assert records.holds_noise
    assert not caplog.records


class Reporting(DDIMScheduler):
    """Keeps the clean samples that its step reports."""

    def step(self, *args, **options):
        out = super().step(*args, **options)
        self.reported = out.pred_original_sample
        return out


def test_the_last_prediction_is_that_of_the_last_step_before_its_move():
    scheduler = Reporting(clip_sample=False)
    scheduler.set_timesteps(10)
    _, records = run_loop(scheduler, scheduler.timesteps[:4], num_steps=4)
    torch.testing.assert_close(records.last_x0_pred(), scheduler.reported)


@pytest.mark.parametrize("name", ["ddim", "kdpm2-ancestral", "dpm-sde-2", "flow-sde", "euler-ancestral"])
def test_looking_back_at_a_step_leaves_the_scheduler_as_it_is(name):
    kinds = FAMILIES[name][2]
    scheduler, arguments = make_scheduler(name, kinds[0])
    sample = initial_sample(scheduler, 4)
    with steer(scheduler, FKPopulation(LONG_RUN), lambda x0: x0.mean(dim=(1, 2, 3)), num_steps=3) as records:
        for t in scheduler.timesteps[:3]:
            output = toy_model(scaled_input(scheduler, sample, t), t)
            now = predict_x0(scheduler, output, t, sample)
            sample = scheduler.step(output, t, sample, **arguments).prev_sample
        index = getattr(scheduler, "step_index", None)
        if not any(record.step == 2 for record in records):  # else the rows of the last step were gathered
            torch.testing.assert_close(records.last_x0_pred(), now)
        assert getattr(scheduler, "step_index", None) == index
    assert records.holds_noise


def test_an_unknown_first_timestep_is_refused():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep, 17, is not among the 10 of scheduler.timesteps. Pass num_steps"):
        run_loop(scheduler, [torch.tensor(17)])
    run_loop(scheduler, [torch.tensor(17)] * 4, num_steps=4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run_loop(scheduler, scheduler.timesteps, num_steps=0)


def test_a_loop_that_ends_early_says_so(caplog):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    _, records = run_loop(scheduler, scheduler.timesteps[:5])
    assert records.notes == ["The loop ended after 5 of 10 steps, before its scoring steps [6, 8]."]
    assert caplog.messages == records.notes
    assert records.holds_noise


def test_a_funnel_never_ends_with_more_particles_than_were_asked_for():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(RuntimeError, match="after 5 of 10 steps with 2 particles .*final_particles.* asks for 1"):
        run_loop(scheduler, scheduler.timesteps[:5], config=FUNNEL)
    assert "step" not in vars(scheduler)


def test_a_loop_that_goes_on_says_so():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    _, records = run_loop(scheduler, scheduler.timesteps, num_steps=5)
    assert records.notes == ["The loop ran 10 steps, and the scoring steps were placed for 5: pass num_steps."]
