"""The ImageReward that ships in the package, on drawn images of held-out prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fk_reward.models import ASSETS
from fk_reward.rewards import load_reward
from fk_reward.shapes import benchmark_prompts, render, sample_scene, true_prompts


@pytest.fixture(scope="module")
def reward():
    return load_reward("shapes-imagereward")


def test_one_small_folder_that_computes_in_float32(reward):
    assert {weight.dtype for weight in reward.model.parameters()} == {torch.float32}
    assert reward.card.max_prompt_tokens == reward.config.max_tokens == 16
    assert sum(file.stat().st_size for file in (ASSETS / "shapes-imagereward").rglob("*")) < 3e6


@torch.no_grad()
def test_prefers_the_caption_that_is_true(reward):
    rng, prompts = np.random.default_rng(0), benchmark_prompts(60)
    scenes = [sample_scene(prompt, rng) for prompt in prompts]
    images, texts = render(scenes), [prompt.text for prompt in prompts]
    others = [
        next(p.text for p in prompts[i + 1 :] + prompts if p not in true_prompts(scene))
        for i, scene in enumerate(scenes)
    ]
    false = reward(images, others)
    assert (reward(images, texts) > false).double().mean() >= 0.9
    assert (reward(images.flip(0), texts) > false).double().mean() < 0.8  # other images under the true captions
