"""A search around a loop of one's own: the law that it reaches, what it chooses, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from fk_reward.pipelines import SteeredLoop, loop_searches
from fk_reward.rewards import Reward, RewardCard
from fk_reward.search import BestOfN, FKSteeringConfig, Pruning

REACH = 20.0  # numbers in [-10, 10] as grey values in [0, 1]


def grey(samples):
    """Numbers `(B, 1, 1, 1)` as images `(B, 3, 1, 1)`."""
    return (samples / REACH + 0.5).clamp(0, 1).expand(-1, 3, 1, 1)


class ReadsNumber(Reward):
    """The number that an image of `grey` shows, times 2 for the prompt "double"."""

    card = RewardCard(name="number", summary="the number", spread=1.0)

    def score(self, images, prompts):
        factor = torch.tensor([2.0 if prompt == "double" else 1.0 for prompt in prompts])
        return (images.mean((1, 2, 3)) - 0.5) * REACH * factor


def draw(loop, *, rows, seed=1, num_steps=30):
    """Standard normal numbers by ancestral Euler steps with the exact denoiser; what `finish` chose."""
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    noise = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 1, 1, 1, generator=noise) * math.sqrt(1 + float(scheduler.sigmas[0]) ** 2)
    with loop.steering(scheduler) as records:
        for place, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[place]
            scheduler.scale_model_input(sample, t)
            output = sample * sigma / (1 + sigma**2)  # of the denoiser x / (1 + sigma²), as noise
            sample = scheduler.step(output, t, sample, generator=noise).prev_sample
    return loop.finish(sample), records


def variance_of_the_chain(num_steps=30):
    """Of what the steps above end with: they are linear, so that this is exact."""
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double().tolist()
    variance = 1 + sigmas[0] ** 2
    for now, then in zip(sigmas, sigmas[1:], strict=False):
        up = math.sqrt(then**2 * (now**2 - then**2) / now**2)
        down = math.sqrt(then**2 - up**2)
        factor = 1 + (down - now) * now / (1 + now**2)
        variance = factor**2 * variance + up**2
    return variance


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (0.0, False)])
def test_fk_reaches_the_tilted_normal(scale, holds):
    """p(x) exp(x) of N(0, v) is N(v, v); the saboteur steers by nothing."""
    number, variance = 20_000, variance_of_the_chain()
    loop = SteeredLoop(
        FKSteeringConfig(reward_scale=scale, selection="sample"),
        ReadsNumber(),
        ["a"],
        grey,
        num_particles=number,
        num_images=number,
        generators=torch.Generator().manual_seed(0),
    )
    result, _ = draw(loop, rows=number)
    # weights spread over e^var, resampled five times: five standard errors of a few thousand effective particles
    error = abs(float(result.samples.mean()) - variance)
    assert (error < 5 * math.sqrt(variance / 4000)) is holds


def test_prompts_are_those_of_their_rows_and_the_best_come_first():
    loop = SteeredLoop("best-of-n", ReadsNumber(), ["a", "double"], grey, num_particles=3, num_images=2)
    samples = torch.tensor([1.0, 3.0, 2.0, -1.0, -3.0, -2.0]).view(-1, 1, 1, 1)
    result = loop.finish(samples)
    assert result.rows.tolist() == [1, 2, 3, 5]
    torch.testing.assert_close(result.rewards, torch.tensor([[3.0, 2.0], [-2.0, -4.0]]))
    assert result.samples.flatten().tolist() == [3.0, 2.0, -1.0, -2.0]


def test_a_search_that_shrinks_keeps_its_proportions_with_the_batch():
    loop = SteeredLoop("pruning", ReadsNumber(), ["a"], grey, num_particles=6)
    assert loop.config == Pruning(num_particles=6, keep=(4, 2), at=loop.config.at)
    result, records = draw(loop, rows=6)
    assert [record.rewards.shape[1] for record in records] == [6, 4]
    assert len(result.samples) == 1


def test_the_recommended_search_is_chosen_by_the_number_of_images():
    assert isinstance(SteeredLoop("recommended", ReadsNumber(), ["a"], grey, num_particles=12).config, Pruning)
    constraint = SteeredLoop("recommended", ReadsNumber(), ["a"], grey, num_particles=8, situation="constraint")
    assert isinstance(constraint.config, FKSteeringConfig)


def test_a_group_of_images_that_differ():
    loop = SteeredLoop(
        BestOfN(selection="diverse", diversity_weight=10.0), ReadsNumber(), ["a"], grey, num_particles=3, num_images=2
    )
    result = loop.finish(torch.tensor([2.0, 1.99, -2.0]).view(-1, 1, 1, 1))
    assert result.rows.tolist() == [0, 2]


@pytest.mark.parametrize("name", ["draft-refine", "noise-search", "restart", "fk-gradient", "particle-metropolis"])
def test_searches_that_need_more_than_a_loop_are_refused(name):
    assert name not in loop_searches()
    with pytest.raises(ValueError, match="which a loop that runs once by its own steps cannot do: use a pipeline"):
        SteeredLoop(name, ReadsNumber(), ["a"], grey)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search": "fk", "num_particles": 4, "num_images": 5}, "num_images should be at most 4"),
        ({"search": "best-of-n", "reward_scale": 3.0}, "'reward_scale' is no setting of BestOfN"),
        ({"search": "fkk"}, "Unknown search 'fkk'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SteeredLoop(arguments.pop("search"), ReadsNumber(), ["a"], grey, **arguments)


def test_frames_of_a_video_are_refused():
    loop = SteeredLoop(
        "best-of-n", ReadsNumber(), ["a"], lambda samples: grey(samples).repeat(2, 1, 1, 1), num_particles=2
    )
    with pytest.raises(ValueError, match="one image of each of 2 samples, got 4"):
        loop.finish(torch.zeros(2, 1, 1, 1))
