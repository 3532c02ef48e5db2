"""Rollover budget: against the algorithm written out, and what it becomes in special cases."""

import copy
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)

from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import lookahead
from fk_reward.sampling.steering import steer
from fk_reward.sampling.x0_prediction import predict_x0
from fk_reward.search import RolloverBudget
from fk_reward.search.budget import fit_budget, sample_steps
from fk_reward.search.rollover import RolloverPopulation
from tests import tiny

NUM_STEPS, SHAPE = 8, (1, 3, 3)
SCHEDULERS = {
    "ddim": (DDIMScheduler(clip_sample=False), {"eta": 1.0}),
    "ddpm": (DDPMScheduler(clip_sample=False), {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler(), {}),
    "sde-dpmsolver++": (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}),
}


def reward(x0):
    return torch.cos(2 * x0).flatten(1).sum(1) + x0.flatten(1)[:, 0]


def model(scheduler):
    """A denoiser of any kind will do; each row by itself."""

    def denoise(sample, timestep):
        scaled = scheduler.scale_model_input(sample, timestep)
        return 0.7 * scaled + 0.2 * torch.sin(scaled + float(timestep) / 500)

    return denoise


def scheduler_of(name):
    scheduler, options = copy.deepcopy(SCHEDULERS[name])
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler, options


def first_sample(number, scheduler):
    generator = torch.Generator().manual_seed(11)
    return torch.randn(number, *SHAPE, generator=generator) * scheduler.init_noise_sigma


def steered(name, config, *, seed=1):
    """The result, sample steps, and the notes of a run."""
    scheduler, options = scheduler_of(name)
    generator, denoise, population = torch.Generator().manual_seed(seed), model(scheduler), config.population()
    sample = first_sample(config.num_particles, scheduler)
    with steer(scheduler, population, reward, denoise=denoise, num_steps=NUM_STEPS) as records:
        for t in scheduler.timesteps:
            output = denoise(sample, t)
            sample = scheduler.step(output, t, sample, generator=generator, **options).prev_sample
    population.finish(reward(sample))
    return sample, records.sample_steps, population


def plain(name, number=1, *, seed=1, start=None):
    scheduler, options = scheduler_of(name)
    generator, denoise = torch.Generator().manual_seed(seed), model(scheduler)
    sample = first_sample(number, scheduler) if start is None else start
    for t in scheduler.timesteps:
        sample = scheduler.step(denoise(sample, t), t, sample, generator=generator, **options).prev_sample
    return sample


def written_out(name, *, starts, quota, threshold, seed=1, rolls_over=True):
    """Algorithm 1 of the paper on copies of the scheduler: result and sample steps."""
    scheduler, options = scheduler_of(name)
    generator, denoise = torch.Generator().manual_seed(seed), model(scheduler)
    times = scheduler.timesteps
    sample = first_sample(starts, scheduler)
    output, cost = denoise(sample, times[0]), starts
    rewards = reward(predict_x0(scheduler, output, times[0], sample))
    place = int(rewards.argmax())
    sample, output = sample[place : place + 1], output[place : place + 1]
    best = parent = float(rewards[place])
    left = 0
    for index in range(1, len(times)):
        allowed, draws = quota + left, []
        limit = {"best": best, "parent": parent}.get(threshold, threshold)
        spends_all = index == len(times) - 1 and isinstance(threshold, str)
        while len(draws) < allowed:
            own = copy.deepcopy(scheduler)
            drawn = own.step(output, times[index - 1], sample, generator=generator, **options).prev_sample
            outcome, cost = denoise_with(own, drawn, times[index]), cost + 1
            score = float(reward(predict_x0(own, outcome, times[index], drawn)))
            draws.append((score, drawn, outcome, own))
            if score > limit and not spends_all:
                break
        left = allowed - len(draws) if rolls_over else 0
        parent, sample, output, scheduler = max(draws, key=lambda draw: draw[0])
        best = max(best, parent)
    return scheduler.step(output, times[-1], sample, generator=generator, **options).prev_sample, cost


def denoise_with(scheduler, sample, timestep):
    return model(scheduler)(sample, timestep)


@pytest.mark.parametrize("threshold", ["best", "parent", 4.0, math.inf, -math.inf])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_the_algorithm_written_out(name, threshold):
    config = RolloverBudget(num_particles=3, num_proposals=3, threshold=threshold)
    sample, cost, population = steered(name, config)
    expected, expected_cost = written_out(name, starts=3, quota=3, threshold=threshold)
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
    assert cost == expected_cost <= sample_steps(config, NUM_STEPS) == 3 + 7 * 3
    assert f"{cost - 3} draws for 7 steps" in population.notes[-1]


def test_budget_that_does_not_roll_over_is_noticed():
    """The saboteur: each step has its own quota alone."""
    config = RolloverBudget(num_particles=3, num_proposals=3, threshold="parent")
    costs = {steered("ddim", config, seed=seed)[1] for seed in range(3)}
    others = {written_out("ddim", starts=3, quota=3, threshold="parent", seed=s, rolls_over=False)[1] for s in range(3)}
    assert costs == {3 + 7 * 3}  # the last step takes what is left
    assert max(others) < 3 + 7 * 3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_draw_or_no_threshold_is_the_plain_pipeline_bit_for_bit(name):
    for config in (
        RolloverBudget(num_particles=1, num_proposals=1),
        RolloverBudget(num_particles=1, num_proposals=5, threshold=-math.inf),
    ):
        sample, cost, _ = steered(name, config)
        assert torch.equal(sample, plain(name))
        assert cost == NUM_STEPS


def test_without_a_threshold_the_best_start_goes_on_alone():
    scheduler, _ = scheduler_of("ddim")
    sample, cost, _ = steered("ddim", RolloverBudget(num_particles=4, threshold=-math.inf))
    starts = first_sample(4, scheduler)
    rewards = reward(predict_x0(scheduler, model(scheduler)(starts, 875), scheduler.timesteps[0], starts))
    place = int(rewards.argmax())
    assert cost == 4 + NUM_STEPS - 1
    torch.testing.assert_close(sample, plain("ddim", start=starts[place : place + 1]), rtol=1e-5, atol=1e-5)


def test_without_a_way_to_pass_every_step_is_the_best_of_its_quota():
    _, cost, population = steered("ddpm", RolloverBudget(num_particles=1, num_proposals=4, threshold=math.inf))
    assert cost == 1 + 7 * 4
    assert population.notes[-1] == "28 draws for 7 steps, 0 of which found a better one."


def draws_of(config, rewards_of_steps, num_steps=6):
    """How many draws each step takes, of rewards that are written down."""
    population = RolloverPopulation(config)
    population.begin(num_steps)
    numbers = []
    for step, rewards in enumerate(rewards_of_steps):
        kept, number = -math.inf, 0
        for one in rewards:
            if population.consider(torch.tensor([one]), step=step):
                kept = one
            number += 1
            if not population.wants_more:
                break
        else:
            raise AssertionError(f"step {step} wants more than {rewards}")
        population.advance(torch.tensor([kept]), step=step)
        numbers.append(number)
    return numbers


def test_what_is_not_needed_goes_to_the_next_step():
    config = RolloverBudget(num_particles=1, num_proposals=3)
    # 2 of 3; then 4 of 1 + 3, of which none is above 0.9; then 1 of 3, and 5 of 2 + 3
    assert draws_of(config, [[0.5], [0.4, 0.9], [0.1, 0.2, 0.3, 0.4], [1.0], [0.0] * 5]) == [1, 2, 4, 1, 5]


def test_rules_of_the_threshold():
    rewards = [[0.5], [0.9], [0.3, 0.2, 0.1], [0.4] * 9]
    # above all before: .9 passes, .3 does not, and .4 does not
    assert draws_of(RolloverBudget(num_particles=1, num_proposals=2), rewards) == [1, 1, 3, 2]
    # above the one before: .4 is above .3
    assert draws_of(RolloverBudget(num_particles=1, num_proposals=2, threshold="parent"), rewards) == [1, 1, 3, 1]
    # good enough is good enough
    assert draws_of(RolloverBudget(num_particles=1, num_proposals=2, threshold=0.25), rewards) == [1, 1, 1, 1]


def test_steps_with_proposals():
    population = RolloverBudget(start=0.4, stop=0.8, num_particles=3, num_proposals=2).population()
    assert population.scoring_steps(10) == (3, 4, 5, 6, 7, 8)
    forecast = population.forecast(10)
    assert forecast.steps == (3, 3, 3, 3, 1, 1, 1, 1, 1, 1)
    assert (forecast.scorings, forecast.extra_steps, forecast.finished) == ((3, *(1,) * 10), 5, 1)
    assert "no step to propose" in RolloverBudget().population().begin(1)


def test_a_budget_buys_proposals():
    assert fit_budget(RolloverBudget(num_particles=4), 100, 20).num_proposals == 5  # 4 + 19 * 5 = 99
    small = fit_budget(RolloverBudget(num_particles=4), 21, 20)
    assert (small.num_particles, small.num_proposals) == (2, 1)
    with pytest.raises(ValueError, match="needs at least 20"):
        fit_budget(RolloverBudget(), 19, 20)


def test_what_cannot_work_is_refused():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    sample = torch.zeros(1, *SHAPE)
    one = RolloverBudget(num_particles=1)
    with pytest.raises(ValueError, match="eta"), steer(scheduler, one.population(), reward):
        scheduler.step(sample, scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="one prompt at a time; got 2: call the pipeline once for each"):
        RolloverBudget().population(2)
    for wrong in ({"threshold": "mean"}, {"threshold": math.nan}, {"num_proposals": 0}, {"start": 0.9, "stop": 0.1}):
        with pytest.raises((TypeError, ValueError)):
            RolloverBudget(**wrong)


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


PIPELINES = {
    "sd": tiny.make_sd,
    "sdxl": lambda: tiny.make_sdxl(scheduler=DDIMScheduler(clip_sample=False)),
    "sd-sde": lambda: tiny.make_sd(scheduler=DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")),
}


@pytest.fixture(scope="module", params=PIPELINES)
def pipe(request):
    made = FKSteeringPipeline(PIPELINES[request.param](), reward=redness)
    made.set_progress_bar_config(disable=True)
    return made


def call(pipe, **options):
    options = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 5, **options}
    return pipe("a red circle", output_type="pt", **options)


def test_in_a_pipeline(pipe):
    config = RolloverBudget(num_particles=3, num_proposals=2)
    out = call(pipe, search=config)
    trace = out.trace
    draws = int(trace.notes[0].split(" draws")[0])
    assert trace.cost.sample_steps == 3 + draws <= sample_steps(config, 5) == 3 + 4 * 2
    assert trace.cost.denoiser_rows == 2 * trace.cost.sample_steps  # guidance
    assert trace.cost.decodes == trace.cost.reward_calls == 3 + draws + 1
    assert [step.num_particles for step in trace.steps] == [3, 1, 1, 1, 1, 1]
    torch.testing.assert_close(redness(out.images, None), out.rewards[0], rtol=0, atol=1e-5)
    again = call(pipe, search=config)
    assert torch.equal(again.images, out.images)
    assert torch.equal(again.rewards, out.rewards)


def test_one_draw_is_the_wrapped_pipeline_bit_for_bit(pipe):
    out = call(pipe, search="rollover", num_particles=1, num_proposals=1)
    eta = {"eta": 1.0} if isinstance(pipe.scheduler, DDIMScheduler) else {}
    arguments = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 5, "output_type": "pt"}
    assert torch.equal(out.images, pipe.pipe("a red circle", **arguments, **eta).images)
    assert out.trace.cost.sample_steps == 5


def test_more_draws_find_more(pipe):
    """The reward of the predictions rises with the quota; by its mean over seeds, with the same start."""

    def last_prediction(number):
        config = RolloverBudget(num_particles=1, num_proposals=number, threshold=math.inf)
        traces = [call(pipe, search=config, generator=torch.Generator().manual_seed(seed)).trace for seed in range(3)]
        return sum(float(trace.steps[-2].rewards) for trace in traces) / 3

    assert last_prediction(6) > last_prediction(1)


def test_pipelines_that_cannot_be_asked_again_are_refused(monkeypatch):
    stock = tiny.make_sd()
    pipe = FKSteeringPipeline(stock, reward=redness)
    monkeypatch.setattr(lookahead, "LOOKAHEAD_PIPELINES", ("FluxPipeline",))
    with pytest.raises(ValueError, match="search=RolloverBudget is for FluxPipeline"):
        call(pipe, search="rollover")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="lookahead='adapter' does not go with it"):
        call(pipe, search="rollover", lookahead="adapter")
    with pytest.raises(ValueError, match="one prompt at a time"):
        pipe(["a red circle", "two blue squares"], search="rollover", num_inference_steps=5)


def test_with_a_look_ahead_each_draw_costs_more():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=redness)
    pipe.set_progress_bar_config(disable=True)
    config = RolloverBudget(num_particles=2, num_proposals=2, stop=0.4)
    plain, ahead = (call(pipe, search=config, lookahead=number).trace for number in (1, 3))
    draws = int(ahead.notes[0].split(" draws")[0])
    most = sample_steps(config, 5, lookahead=3)
    # the starts, the draws, the steps after the last scoring, and two more for everything that was scored on the way
    assert ahead.cost.sample_steps == 2 + draws + 2 + 2 * (2 + draws) <= most
    assert plain.cost.sample_steps < ahead.cost.sample_steps
