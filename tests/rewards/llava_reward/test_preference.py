"""Preferences: probabilities of all objectives, and general preferences as rewards relative to the other images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import NonFiniteScoreError


def with_objective(reward, objective):
    """The same weights under another objective."""
    key = reward.dimension
    reward.model.configs[key] = dataclasses.replace(reward.model.configs[key], objective=objective)
    return reward


@pytest.fixture
def fresh(phi):
    """A reward on a model of its own, so that a test may change it."""
    return lambda: phi.load(num_crops=3)


def test_bradley_terry_is_the_official_formula(phi, batch):
    images, prompts = batch
    reward = phi.load("alignment")
    swapped = images.flip(0)
    difference = (reward(images, prompts) - reward(swapped, prompts)) / 0.1
    assert_close(reward.preference(images, swapped, prompts), torch.sigmoid(difference), rtol=1e-4, atol=1e-5)


def test_binary_compares_logits(fresh, batch):
    images, prompts = batch
    reward = with_objective(fresh(), "binary")
    swapped = images.flip(0)
    difference = reward(images, prompts) - reward(swapped, prompts)
    assert_close(reward.preference(images, swapped, prompts), torch.sigmoid(difference), rtol=1e-4, atol=1e-5)


def test_general_preference_is_skew_symmetric(phi, batch):
    images, prompts = batch
    reward = phi.load("overall")
    vectors, others = reward.embed(images, prompts), reward.embed(images.flip(0), prompts)
    logits = (
        vectors[:, 0] * others[:, 1]
        - vectors[:, 1] * others[:, 0]
        + vectors[:, 2] * others[:, 3]
        - vectors[:, 3] * others[:, 2]
    ) / 0.1
    there = reward.preference(images, images.flip(0), prompts)
    back = reward.preference(images.flip(0), images, prompts)
    assert_close(there, torch.sigmoid(logits), rtol=1e-3, atol=1e-4)
    assert_close(there + back, torch.ones(3), rtol=0, atol=1e-5)


def test_general_preference_scores_against_the_same_prompt(phi, batch):
    images, _ = batch
    reward = phi.load("overall")
    prompts = ["a star", "a star", "a circle"]
    scores = reward(images, prompts)
    assert_close(scores[0], -scores[1], rtol=1e-4, atol=1e-5)
    assert scores[0].abs() > 1e-4
    assert scores[2] == 0
    assert_close(reward(images[:2], "a star"), scores[:2], rtol=1e-4, atol=1e-4)


def test_general_preference_in_small_batches_sees_all_particles(phi, batch):
    images, _ = batch
    expected = phi.load("overall")(images, "a star")
    assert_close(phi.load("overall", batch_size=1)(images, "a star"), expected, rtol=1e-3, atol=1e-3)


def test_unequal_numbers_of_images_raise(phi, batch):
    with pytest.raises(ValueError, match="got 3 and 2"):
        phi.load().preference(batch[0], batch[0][:2], "a star")


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_a_score_that_is_not_finite_names_its_image(phi, dimension, batch, monkeypatch):
    reward = phi.load(dimension)
    head = reward.model.heads[dimension]
    forward = head.forward
    monkeypatch.setattr(
        head, "forward", lambda *states: forward(*states) * torch.tensor([[1.0], [float("nan")], [1.0]])
    )
    with pytest.raises(NonFiniteScoreError, match="image 1"):
        reward(*batch)
