"""Compositions steer, and the trace holds what their parts gave."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from fk_reward import FKSteeringPipeline, SteeringTrace
from tests import tiny
from tests.pipelines.calls import BrightnessReward
from tests.sampling.random_traces import make_trace


def steered(reward):
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=reward)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_particles": 3, "num_inference_steps": 4, "num_images_per_prompt": 3, "output_type": "pt"}
    prompts = ["a photo of a red circle", "a photo of a star"]
    return pipe(prompts, generator=torch.Generator().manual_seed(0), reward_scale="auto", **options)


@pytest.mark.parametrize("name", ["shapes-verifier", "shapes-clipscore"])
def test_one_times_a_reward_steers_as_the_reward(name):
    plain, composed = steered(name), steered(f"{name}*1.0")
    assert torch.equal(composed.images, plain.images)
    assert torch.equal(composed.rewards, plain.rewards)
    assert torch.equal(composed.trace.steps[-1].log_weights, plain.trace.steps[-1].log_weights)
    assert plain.trace.reward_parts() == {}


def test_two_halves_of_a_reward_steer_as_the_reward():
    first, second, plain = BrightnessReward(), BrightnessReward(), steered(BrightnessReward())
    for reward in (0.5 * first + 0.5 * first, 0.5 * first + 0.5 * second):
        torch.testing.assert_close(steered(reward).rewards, plain.rewards, rtol=1e-6, atol=1e-6)


def test_the_trace_holds_the_parts():
    output = steered("0.5*shapes-clipscore - shapes-verifier")
    trace = output.trace
    assert trace.reward_name == "0.5*shapes-clipscore - shapes-verifier"
    for prompt_index in range(2):
        parts = trace.reward_parts(prompt_index)
        assert list(parts) == ["shapes-clipscore", "shapes-verifier"]
        assert parts["shapes-clipscore"].shape == (len(trace.steps), 3)
        rewards = torch.stack([step.rewards[prompt_index] for step in trace.steps])
        torch.testing.assert_close(0.5 * parts["shapes-clipscore"] - parts["shapes-verifier"], rewards)
    again = SteeringTrace.from_json(trace.to_json())
    for name, values in trace.reward_parts(1).items():
        assert torch.equal(again.reward_parts(1)[name], values)
    with pytest.raises(IndexError):
        trace.reward_parts(2)


def test_a_file_without_parts_is_read():
    record = json.loads(make_trace().to_json())
    for step in record["steps"]:
        del step["reward_parts"]
    assert SteeringTrace.from_json(json.dumps(record)).reward_parts() == {}


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"a": torch.zeros(2, 3)}, ValueError, r"reward_parts\['a'\]: expected shape"),
        ({"a": torch.full((2, 4), torch.nan)}, ValueError, "expected finite"),
        ({"a": torch.zeros(2, 4, dtype=torch.float64)}, TypeError, "expected a torch.float32"),
    ],
)
def test_wrong_parts_are_refused(parts, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(make_trace().steps[0], reward_parts=parts)


def test_all_steps_have_the_same_parts():
    trace = make_trace()
    odd = dataclasses.replace(trace.steps[0], reward_parts={"a": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"step 0 has other parts than the last, \['a'\]"):
        dataclasses.replace(trace, steps=(odd, *trace.steps[1:]))


def test_a_composition_of_which_lower_is_better_is_refused():
    class Loss(BrightnessReward):
        card = dataclasses.replace(BrightnessReward.card, higher_is_better=False)

    with pytest.raises(ValueError, match="lower is better.*write a minus before"):
        FKSteeringPipeline(tiny.make_sd(), reward=2 * Loss())
    assert FKSteeringPipeline(tiny.make_sd(), reward=-2 * Loss()).reward.card.name == "-2*brightness"
