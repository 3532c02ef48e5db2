"""The noise level of what is scored: against Diffusers' own noising, and told to a score that asks for it."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fk_reward import steer
from fk_reward.sampling.lookahead import LookAhead
from fk_reward.sampling.transitions import StepState, one_step_prediction, plain_transition, prediction_level
from fk_reward.sampling.x0_prediction import noise_level
from fk_reward.search.moves import Moved
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.steering_configs import early

CONFIG = early(num_particles=4, potential="immediate", ess_threshold=1.0, reward_scale=5.0)
KNOWN = [
    *(case for case in CASES if not case.values[0].startswith(("kdpm2", "flow-glass"))),
    pytest.param(UniPCMultistepScheduler, None, id="unipc"),
    pytest.param(EulerDiscreteScheduler, None, id="euler"),
    pytest.param(FlowMatchEulerDiscreteScheduler, None, id="flow-euler"),
]


def made(name, kind):
    if isinstance(name, str):
        return make_scheduler(name, kind)[0]
    scheduler = name()
    scheduler.set_timesteps(10)
    return scheduler


def noised(scheduler, clean, noise, timestep):
    """Diffusers' own forward process."""
    shape = (1, 1, 1, 1)
    clean, noise = torch.full(shape, clean), torch.full(shape, noise)
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(clean, timestep.reshape(1), noise))
    return float(scheduler.add_noise(clean, noise, timestep.reshape(1)))


@pytest.mark.parametrize(("name", "kind"), KNOWN)
@pytest.mark.parametrize("place", [0, 4, 9])
def test_the_level_is_that_of_the_forward_process(name, kind, place):
    scheduler = made(name, kind)
    if place >= len(scheduler.timesteps):
        pytest.skip("a shorter schedule")
    timestep = scheduler.timesteps[place]
    try:
        alpha, sigma = noised(scheduler, 1.0, 0.0, timestep), noised(scheduler, 0.0, 1.0, timestep)
    except (AttributeError, NotImplementedError, TypeError):
        pytest.skip("has no forward process of its own")
    level = noise_level(made(name, kind), timestep)
    assert level == pytest.approx(sigma / (alpha**2 + sigma**2) ** 0.5, abs=1e-5)
    assert 0 < level <= 1


def test_a_row_of_timesteps_counts_as_one():
    scheduler = made("ddim", "epsilon")
    assert noise_level(scheduler, scheduler.timesteps[4].repeat(3)) == noise_level(scheduler, scheduler.timesteps[4])


class LevelScore:
    """Scores by the mean, and notes the level that it was asked for; without one it must not be called."""

    def __init__(self, seen, level=None):
        self.seen, self.level = seen, level

    def __call__(self, x0_pred):
        self.seen.append(self.level)
        return x0_pred.mean(dim=(1, 2, 3)).float()

    def at_noise(self, level):
        return LevelScore(self.seen, level)


def run(**options):
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    seen, generator = [], torch.Generator().manual_seed(1)
    sample = initial_sample(scheduler, CONFIG.num_particles)
    population = CONFIG.population(generators=torch.Generator().manual_seed(2))

    def denoise(sample, timestep):
        return toy_model(scaled_input(scheduler, sample, timestep), timestep)

    with steer(scheduler, population, LevelScore(seen), denoise=denoise, **options) as records:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(denoise(sample, timestep), timestep, sample, generator=generator, **arguments)[0]
    return scheduler, records, seen


def test_every_scoring_step_asks_for_its_level():
    scheduler, records, seen = run()
    expected = [(1 - float(scheduler.alphas_cumprod[int(record.timestep)])) ** 0.5 for record in records]
    assert seen == pytest.approx(expected) and len(seen) > 2
    assert [record.level for record in records] == seen


def test_after_a_look_ahead_the_level_is_that_of_its_last_prediction():
    scheduler, records, seen = run(prediction=LookAhead(3))
    numbers = scheduler.timesteps.tolist()
    for record, level in zip(records, seen, strict=True):
        left = numbers[numbers.index(int(record.timestep)) :]
        last = left[int(2 * len(left) / 3 + 0.5)] if len(left) >= 3 else left[-1]
        assert level == pytest.approx((1 - float(scheduler.alphas_cumprod[last])) ** 0.5)
    assert seen != run()[2], "a saboteur: the level of the step"


def test_transitions_score_at_the_level_of_their_step():
    levels = []

    def watching(state, move, score):
        levels.append((state.level, score.level))
        return Moved(move())

    run(transition=watching, prediction=one_step_prediction)
    assert len(levels) == 10 and all(own == pytest.approx(told) for own, told in levels)


def test_a_plain_function_is_not_asked():
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    sample = initial_sample(scheduler, CONFIG.num_particles)
    with steer(scheduler, CONFIG.population(), lambda x0: x0.mean(dim=(1, 2, 3)), transition=plain_transition):
        for timestep in scheduler.timesteps:
            sample = scheduler.step(toy_model(sample, timestep), timestep, sample, **arguments)[0]


def test_unknown_schedulers_have_no_level():
    class Unknown:
        pass

    state = StepState(0, 1, 0, torch.zeros(1), torch.zeros(1), Unknown())
    assert prediction_level(None, state) is None
    assert prediction_level(None, StepState(0, 1, 0, torch.zeros(1), torch.zeros(1), DDIMScheduler())) is not None
