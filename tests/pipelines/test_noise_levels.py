"""A reward that judges by noise level in a pipeline: who is asked where, what the trace says, what is refused."""

from __future__ import annotations

import pytest
import torch

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.pipelines.reward_checks import require_calibrated
from fk_reward.rewards import BandedReward, CallableReward, NoiseBand, Reward, RewardCard
from fk_reward.sampling.trace import SteeringTrace
from fk_reward.search import Pruning, RolloverBudget
from tests.pipelines.calls import generator
from tests.tiny.latent_diffusion import make_sd

PROMPTS = ["a red circle", "two blue squares"]
ARGUMENTS = {"num_particles": 3, "num_images_per_prompt": 3, "num_inference_steps": 6, "output_type": "pt"}


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


class Levels(Reward):
    """Brightness, and a list of the levels at which it was asked; None for finished images."""

    card = RewardCard(name="levels", summary="brightness by level", spread=0.1)

    def __init__(self, seen, level=None):
        self.seen, self.level = seen, level

    def score(self, images, prompts):
        self.seen.append(self.level)
        return brightness(images, prompts)

    def at_noise(self, level):
        return Levels(self.seen, level)

    @property
    def judges(self):
        return ("levels" if self.level is None else f"levels@{self.level:.3f}",)


def call(reward, *, pipe=None, **arguments):
    pipe = pipe or FKSteeringPipeline(make_sd(), reward=reward)
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPTS, generator=generator(), **ARGUMENTS | arguments)


@pytest.mark.parametrize("search", ["fk", "pruning", "beam"])
def test_predictions_are_judged_at_their_levels_and_finished_images_at_none(search):
    seen = []
    settings = {"pruning": {"keep": (2, 1), "at": (0.3, 0.6), "num_images_per_prompt": 1}, "beam": {}}.get(search, {})
    trace = call(Levels(seen), search=search, **settings).trace
    assert seen[-1] is None and None not in seen[:-1] and len(seen) == len(trace.steps) > 2
    assert seen[:-1] == sorted(seen[:-1], reverse=True)
    assert [step.level for step in trace.steps] == [*seen[:-1], 0.0]
    assert [step.judges for step in trace.steps] == [*((f"levels@{level:.3f}",) for level in seen[:-1]), ("levels",)]
    again = SteeringTrace.from_json(trace.to_json())
    assert [(step.level, step.judges) for step in again.steps] == [(step.level, step.judges) for step in trace.steps]


def test_a_reward_that_answers_itself_changes_nothing_bit_for_bit():
    plain = CallableReward(brightness, "brightness")
    expected = call(plain)
    got = call(BandedReward(plain, {NoiseBand(0.0, 1.0): CallableReward(brightness, "band")}))
    assert torch.equal(got.images, expected.images) and torch.equal(got.rewards, expected.rewards)
    assert [step.judges for step in got.trace.steps][-1] == ("brightness",)
    assert {step.judges for step in got.trace.steps[:-1]} == {("band",)}


def test_finished_images_are_judged_by_the_plain_reward():
    """A saboteur on all predictions turns the search around, and leaves the finished scores what they are."""
    plain = CallableReward(brightness, "brightness")
    against = CallableReward(lambda images, prompts: -brightness(images, prompts), "against")
    reward = BandedReward(plain, {NoiseBand(0.0, 1.0): against})
    settings = {"search": Pruning(num_particles=3, keep=(1,), at=(0.5,)), "num_images_per_prompt": 1}
    settings["num_particles"] = 3
    with_it, without = call(reward, **settings), call(plain, **settings)
    assert torch.equal(with_it.rewards.flatten(), plain(with_it.images, PROMPTS))
    first = [one.trace.steps[0] for one in (with_it, without)]
    assert torch.equal(first[0].rewards, -first[1].rewards)
    assert (first[0].ancestors != first[1].ancestors).any()


def test_compositions_batches_and_threads_follow():
    seen = []
    pipe = FKSteeringPipeline(make_sd(), reward=2 * Levels(seen) + 1, reward_device="cpu")
    out = call(None, pipe=pipe, decode_batch_size=2, reward_batch_size=1)
    levels = [step.level for step in out.trace.steps[:-1]]
    assert [level for level in seen if level is not None] == [level for level in levels for _ in range(6)]
    assert out.trace.steps[0].judges == (f"levels@{levels[0]:.3f}",)


class Uncalibrated(Levels):
    @property
    def uncalibrated(self):
        return ("levels@0.5",)


@pytest.mark.parametrize(
    ("search", "refused"),
    [
        (FKSteeringConfig(potential="max", num_particles=3), True),
        (FKSteeringConfig(potential="difference", num_particles=3), True),
        (FKSteeringConfig(potential="immediate", num_particles=3), False),
        (FKSteeringConfig(potential="immediate", stop_reward=0.5, num_particles=3), True),
        (Pruning(num_particles=3, keep=(1,), at=(0.5,)), False),
        (RolloverBudget(threshold="best"), True),
        (RolloverBudget(threshold=float("inf")), False),
    ],
)
def test_bands_without_a_common_unit_are_refused_where_steps_are_compared(search, refused):
    if not refused:
        require_calibrated(search, Uncalibrated([]))
        return
    with pytest.raises(ValueError, match=r"levels@0\.5 of 'levels' has no calibration"):
        require_calibrated(search, Uncalibrated([]))
    require_calibrated(search, Levels([]))


def test_a_call_refuses_them_before_anything_is_drawn():
    seen = []
    with pytest.raises(ValueError, match="no calibration"):
        call(Uncalibrated(seen), search="fk", potential="max")
    assert not seen
