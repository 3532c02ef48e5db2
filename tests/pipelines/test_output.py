"""A reward of -inf in a call: what is returned, repeated, refused, noted, saved and drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fk_reward import SteeringTrace
from tests import tiny
from tests.pipelines.calls import generator, steered

CALL = {"num_particles": 4, "num_inference_steps": 6, "num_resamples": 2}


class Guard:
    """Forbids by place in the call; `early` for the predictions, `finished` for the finished images."""

    def __init__(self, early=(), finished=()):
        self.masks = [early, early, finished]
        self.calls = 0

    def __call__(self, images, prompts):
        scores = images[:, 0].mean((1, 2))
        mask = self.masks[min(self.calls, len(self.masks) - 1)]
        self.calls += 1
        return scores.index_fill(0, torch.tensor(mask, dtype=torch.int64), -math.inf)


def call(guard, prompts="a star", **options):
    pipe = steered(tiny.make_sd())
    pipe.reward = guard
    return pipe(prompts, generator=generator(), **CALL | options)


def test_predictions_may_be_forbidden_and_the_trace_says_what_that_meant(tmp_path):
    out = call(Guard(early=[0, 2]), num_images_per_prompt=4)
    assert out.rewards.isfinite().all()
    assert out.trace.steps[0].rewards[0, [0, 2]].tolist() == [-math.inf] * 2
    assert any("4 predictions of prompt 0 had a reward of -inf" in note for note in out.trace.notes)
    again = SteeringTrace.from_json(out.trace.to_json())
    assert again.notes == out.trace.notes
    assert torch.equal(again.steps[0].rewards, out.trace.steps[0].rewards)
    out.trace.plot(tmp_path / "lineage.png")


def test_a_forbidden_image_is_not_returned():
    out = call(Guard(finished=[0, 2]), num_images_per_prompt=3, output_type="pt")
    assert set(out.trace.selected[0].tolist()) == {1, 3}
    assert out.rewards.isfinite().all()
    assert any("2 are allowed" in note for note in out.trace.notes)
    assert torch.equal(out.images[0], out.images[1]), "the best one repeats"
    assert out.abstained.tolist() == [False]
    assert "2 of 4 are forbidden" in out.trace.summary()


def test_all_forbidden_is_an_error_that_names_the_prompt():
    with pytest.raises(ValueError, match=r"All 4 finished images of prompt 1 have a reward of -inf"):
        call(Guard(finished=[4, 5, 6, 7]), ["a star", "a cross"])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_abstaining_returns_black_images_for_that_prompt_alone(output_type, tmp_path):
    out = call(Guard(finished=[4, 5, 6, 7]), ["a star", "a cross"], abstain=True, output_type=output_type)
    assert out.abstained.tolist() == [False, True]
    assert out.rewards[:, 0].isneginf().tolist() == [False, True]
    assert [np.asarray(image).any() for image in out.images] == [True, False]
    assert out.weights[1].tolist() == [0.0]
    assert out.trace.log_evidence[1] == -math.inf
    assert any("All finished images of prompt 1" in note for note in out.trace.notes)
    assert SteeringTrace.from_json(out.trace.to_json()).log_evidence[1] == -math.inf
    out.trace.plot(tmp_path / "lineage.png", prompt_index=1)


def test_weights_of_the_images():
    guard = Guard()
    guard.masks = [[3]]
    out = call(guard, num_images_per_prompt=3, num_resamples=0, reward_scale=50.0)
    assert float(out.weights.sum()) == pytest.approx(1.0)
    expected = torch.softmax(50.0 * out.rewards[0].double(), 0)
    torch.testing.assert_close(out.weights[0], expected, rtol=1e-4, atol=1e-6)


def test_drawn_by_weight_images_repeat():
    out = call(Guard(finished=[0, 1, 2]), num_images_per_prompt=4, selection="sample", output_type="pt")
    assert out.trace.selected.tolist() == [[3, 3, 3, 3]]
    assert all(torch.equal(image, out.images[0]) for image in out.images)


def test_auto_is_bounded_by_the_spread_on_the_card():
    pipe = steered(tiny.make_sd())  # its card says .01
    out = pipe("a star", generator=generator(), reward_scale="auto", **CALL)
    assert 0 < float(out.trace.reward_scale) <= 3.0 / 0.01 + 1e-6
    assert any("log_evidence is no estimate" in note for note in out.trace.notes)
