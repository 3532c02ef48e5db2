"""How a particle moves and what is scored, as arguments of `steer`."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from fk_reward import steer
from fk_reward.sampling.transitions import Moved, one_step_prediction, plain_transition
from fk_reward.search import Pruning
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.steering_configs import early

CONFIG = early(num_particles=4, potential="immediate", ess_threshold=1.0, reward_scale=5.0)


def score(x0_pred):
    return x0_pred.mean(dim=(1, 2, 3)).float()


def run(scheduler, arguments, *, config=CONFIG, **options):
    sample, generator = initial_sample(scheduler, config.num_particles), torch.Generator().manual_seed(1)
    population = config.population(generators=torch.Generator().manual_seed(2))
    with steer(scheduler, population, score, **options) as records:
        for timestep in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
            sample = scheduler.step(output, timestep, sample, generator=generator, **arguments).prev_sample
    return sample, records, population


ONE_STEP_AT_A_TIME = [case for case in CASES if case.values[0] != "flow-glass"]


@pytest.mark.parametrize(("name", "kind"), ONE_STEP_AT_A_TIME)
def test_the_plain_transition_and_the_one_step_prediction_change_nothing(name, kind):
    plain, records, _ = run(*make_scheduler(name, kind))
    seams = {"transition": plain_transition, "prediction": one_step_prediction}
    same, again, _ = run(*make_scheduler(name, kind), **seams)
    assert torch.equal(plain, same)
    assert [record.rewards.tolist() for record in records] == [record.rewards.tolist() for record in again]


def test_one_step_of_a_transition_of_several_is_not_changed():
    with pytest.raises(ValueError, match="takes several steps, of which FKPopulation would change a single one"):
        run(*make_scheduler("flow-glass", None), transition=plain_transition, prediction=one_step_prediction)


def test_every_move_begins_from_the_same_state_and_the_last_one_counts():
    """Without noise three moves are one: the history of a multistep solver is not moved three times."""

    def thrice(state, move, score):
        first, second, third = move(), move(), move()
        assert torch.equal(first, second)
        return Moved(third)

    def scheduler():
        made = DPMSolverMultistepScheduler(solver_order=2)
        made.set_timesteps(8)
        return made

    config = Pruning(num_particles=4, keep=(2,), at=(0.5,))
    plain, *_ = run(scheduler(), {}, config=config)
    repeated, *_ = run(scheduler(), {}, config=config, transition=thrice)
    assert torch.equal(plain, repeated)


def test_a_move_can_be_made_of_other_arguments():
    seen = []

    def shifted(state, move, score):
        seen.append((state.index, state.num_steps, state.level))
        return Moved(move(sample=state.sample + 0.1, model_output=state.model_output))

    scheduler, arguments = make_scheduler("ddim", "epsilon")
    plain, *_ = run(*make_scheduler("ddim", "epsilon"))
    moved, *_ = run(scheduler, arguments, transition=shifted)
    assert not torch.equal(plain, moved)
    assert [index for index, *_ in seen] == list(range(10))
    assert {number for _, number, _ in seen} == {10}
    assert [level for *_, level in seen] == sorted((level for *_, level in seen), reverse=True)


def test_the_ratio_of_a_transition_goes_into_weights_and_evidence():
    """A constant ratio of 2 at every step leaves the weights alike and multiplies the evidence."""

    def doubled(state, move, score):
        return Moved(move(), torch.full((len(state.sample),), math.log(2.0)))

    config = early(num_particles=4, num_resamples=2, reward_scale=1.0)
    _, records, plain = run(*make_scheduler("ddim", "epsilon"), config=config)
    _, others, corrected = run(*make_scheduler("ddim", "epsilon"), config=config, transition=doubled)
    final = torch.tensor([0.1, 0.2, 0.3, 0.4])
    plain.finish(final, log_ratio=records.log_ratio)
    corrected.finish(final, log_ratio=others.log_ratio)
    torch.testing.assert_close(plain.weights, corrected.weights)
    torch.testing.assert_close(
        corrected.log_evidence - plain.log_evidence, torch.full((1,), 10 * math.log(2.0)).double()
    )


def test_a_wrong_proposal_with_its_ratio_still_samples_the_target():
    """Proposals of the Gaussian chain x -> x + noise, drawn with a drift; the ratio takes the drift back."""
    number, drift, steps = 20_000, 0.4, 3
    population = early(num_particles=number, num_resamples=0, reward_scale=1.0).population()
    generator = torch.Generator().manual_seed(0)
    x, log_ratio = torch.zeros(number).double(), torch.zeros(number).double()
    for _ in range(steps):
        noise = torch.randn(number, generator=generator).double()
        log_ratio += 0.5 * noise**2 - 0.5 * (noise + drift) ** 2  # log p/q at x + drift + noise
        x += drift + noise
    population.finish(0.5 * x, log_ratio=log_ratio)
    mean = float((population.weights[0] * x).sum())
    assert mean == pytest.approx(0.5 * steps, abs=0.08)  # N(0, 3) tilted by exp(x / 2)
    assert float(population.log_evidence) == pytest.approx(0.125 * steps, abs=0.05)


def test_a_search_without_weights_refuses_a_ratio():
    def doubled(state, move, score):
        return Moved(move(), torch.zeros(len(state.sample)))

    scheduler, arguments = make_scheduler("ddim", "epsilon")
    with pytest.raises(ValueError, match="PruningPopulation has no weights"):
        run(scheduler, arguments, config=Pruning(num_particles=4, keep=(2,), at=(0.5,)), transition=doubled)


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (lambda state, move, score: Moved(state.sample), "never called `move`"),
        (lambda state, move, score: Moved(move()[:1]), r"should return samples of shape"),
        (
            lambda state, move, score: Moved(move(), torch.zeros(4, 1)),
            r"should return a log_ratio of shape \(4,\), got \(4, 1\)",
        ),
        (
            lambda state, move, score: Moved(move(), torch.tensor([0.0, torch.nan, 0.0, 0.0])),
            "log_ratio of <lambda> for row 1 is nan: expected finite",
        ),
        (lambda state, move, score: Moved(move(), torch.tensor([torch.inf, 0.0, 0.0, 0.0])), "row 0 is inf"),
    ],
)
def test_transitions_that_do_not_move(transition, message):
    with pytest.raises(ValueError, match=message):
        run(*make_scheduler("ddim", "epsilon"), transition=transition)


def test_a_prediction_is_what_is_scored():
    asked = []

    def look_ahead(state, denoise):
        asked.append(denoise(state.sample, state.timestep).shape)
        return torch.full_like(state.sample, float(state.index))

    scheduler, arguments = make_scheduler("ddim", "epsilon")
    _, records, _ = run(scheduler, arguments, prediction=look_ahead, denoise=toy_model)
    assert [record.rewards.unique().tolist() for record in records] == [[float(record.step)] for record in records]
    assert len(asked) == len(records)


def test_a_prediction_of_ones_own_serves_schedulers_that_are_not_known():
    from diffusers import IPNDMScheduler

    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(6)
    sample = torch.arange(4.0).view(4, 1, 1, 1)
    population = Pruning(num_particles=4, keep=(1,), at=(0.5,)).population()
    with steer(scheduler, population, score, prediction=lambda state, denoise: state.sample):
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample
    assert len(sample) == 1


def test_eta_reaches_a_move():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    plain, *_ = run(scheduler, {"eta": 1.0})
    with pytest.raises(ValueError, match=r"eta=0.0 is deterministic"):
        run(scheduler, {"eta": 0.0}, transition=plain_transition)
    assert plain.isfinite().all()
