"""The length of a run is what runs: from the loop, not from the scheduler's list of timesteps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, KDPM2AncestralDiscreteScheduler

from fk_reward import FKSteeringConfig, steer
from fk_reward.sampling.x0_prediction import predict_x0
from fk_reward.search import FKPopulation
from tests.sampling.scheduler_cases import FAMILIES, initial_sample, make_scheduler, scaled_input, toy_model

CONFIG = FKSteeringConfig(num_particles=4, reward_scale=1.0, ess_threshold=1.0)
FUNNEL = replace(CONFIG, final_particles=1)


def run(scheduler, timesteps, *, config=CONFIG, num_steps=None):
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
    sample, records = run(scheduler, late, config=FUNNEL)
    assert [record.step for record in records] == steps
    assert records.num_steps == records.expected_steps == len(late)
    assert len(sample) == 1
    assert not records.holds_noise


def test_a_second_order_scheduler_has_more_steps_than_were_asked_for():
    scheduler = KDPM2AncestralDiscreteScheduler()
    scheduler.set_timesteps(10)
    _, records = run(scheduler, scheduler.timesteps)
    assert records.num_steps == records.expected_steps == 19


@pytest.mark.parametrize("num_steps", [4, lambda: 4])
def test_the_caller_may_say_it(num_steps, caplog):
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    sample, records = run(scheduler, scheduler.timesteps[:4], config=FUNNEL, num_steps=num_steps)
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
    _, records = run(scheduler, scheduler.timesteps[:4], num_steps=4)
    torch.testing.assert_close(records.last_x0_pred(), scheduler.reported)


@pytest.mark.parametrize("name", ["ddim", "kdpm2-ancestral", "dpm-sde-2", "flow-sde", "euler-ancestral"])
def test_looking_back_at_a_step_leaves_the_scheduler_as_it_is(name):
    kinds = FAMILIES[name][2]
    scheduler, arguments = make_scheduler(name, kinds[0])
    sample = initial_sample(scheduler, 4)
    with steer(scheduler, FKPopulation(CONFIG), lambda x0: x0.mean(dim=(1, 2, 3)), num_steps=3) as records:
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
        run(scheduler, [torch.tensor(17)])
    run(scheduler, [torch.tensor(17)] * 4, num_steps=4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run(scheduler, scheduler.timesteps, num_steps=0)


def test_a_loop_that_ends_early_says_so(caplog):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    _, records = run(scheduler, scheduler.timesteps[:5])
    assert records.notes == ["The loop ended after 5 of 10 steps, before its scoring steps [6, 8]."]
    assert caplog.messages == records.notes
    assert records.holds_noise


def test_a_funnel_never_ends_with_more_particles_than_were_asked_for():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(RuntimeError, match="after 5 of 10 steps with 2 particles .*final_particles.* asks for 1"):
        run(scheduler, scheduler.timesteps[:5], config=FUNNEL)
    assert "step" not in vars(scheduler)


def test_a_loop_that_goes_on_says_so():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    _, records = run(scheduler, scheduler.timesteps, num_steps=5)
    assert records.notes == ["The loop ran 10 steps, and the scoring steps were placed for 5: pass num_steps."]
