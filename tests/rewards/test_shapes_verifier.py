"""The verifier as a reward: registry, scores, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fk_reward.rewards.registry import load_reward
from fk_reward.rewards.shapes_verifier import ShapesVerifierReward
from fk_reward.shapes import Scene, SceneObject, benchmark_prompts, render, sample_scene, verify


@pytest.fixture(scope="module")
def prompts():
    return benchmark_prompts(24)


@pytest.fixture(scope="module")
def pictures(prompts):
    rng = np.random.default_rng(0)
    return render([sample_scene(prompt, rng) for prompt in prompts])


def test_registered_name_builds_it():
    assert isinstance(load_reward("shapes-verifier"), ShapesVerifierReward)


def test_scores_are_the_verifier_s(pictures, prompts):
    shuffled = [prompt.text for prompt in (*prompts[1:], prompts[0])]
    expected = [verify(picture, text).score for picture, text in zip(pictures, shuffled, strict=True)]
    torch.testing.assert_close(ShapesVerifierReward()(pictures, shuffled), torch.tensor(expected))


def test_right_pictures_score_one_and_wrong_ones_less(pictures, prompts):
    texts = [prompt.text for prompt in prompts]
    reward = ShapesVerifierReward()
    assert (reward(pictures, texts) == 1).all()
    assert (reward(pictures, texts[1:] + texts[:1]) < 1).all()


def test_lenient_rule_forgives_other_objects():
    objects = (
        SceneObject("star", "red", x=0.25, y=0.25, size=0.12),
        SceneObject("circle", "blue", x=0.75, y=0.75, size=0.12),
    )
    picture = render([Scene(objects)])
    assert ShapesVerifierReward(strict=False)(picture, "a photo of a star").item() == 1
    assert ShapesVerifierReward()(picture, "a photo of a star").item() < 1


def test_a_prompt_of_another_world_raises(pictures):
    with pytest.raises(ValueError, match="not a sentence of the shapes world"):
        ShapesVerifierReward()(pictures[:1], "a photo of a dog")
