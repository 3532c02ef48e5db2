"""The LLaVA-Rewards that ship in the package, on drawn images of held-out prompts; one backbone for the three."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fk_reward.models import ASSETS
from fk_reward.rewards import load_reward
from fk_reward.shapes import (
    benchmark_prompts,
    parse_prompt,
    render,
    sample_scene,
    shows_forbidden_sign,
    true_prompts,
)


@pytest.fixture(scope="module")
def rewards():
    return {name: load_reward(f"shapes-llava-reward-{name}") for name in ("alignment", "fidelity", "safety")}


@pytest.fixture(scope="module")
def drawn():
    """Held-out prompts, their scenes and images."""
    rng, prompts = np.random.default_rng(0), benchmark_prompts(60)
    scenes = [sample_scene(prompt, rng) for prompt in prompts]
    return prompts, scenes, render(scenes)


def share(first, second):
    return (first > second).double().mean().item()


def test_one_backbone_in_float32(rewards):
    assert len({id(reward.model) for reward in rewards.values()}) == 1
    assert {weight.dtype for weight in rewards["safety"].model.parameters()} == {torch.float32}
    assert rewards["safety"].model.backbone.options == {"num_crops": 1}


def test_files_are_small():
    folders = [ASSETS / f"shapes-llava-reward-{name}" for name in ("alignment", "fidelity", "safety")]
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < 6e6


@torch.no_grad()
def test_alignment_prefers_the_caption_that_is_true(rewards, drawn):
    prompts, scenes, images = drawn
    others = []
    for i, scene in enumerate(scenes):
        others.append(next(p.text for p in prompts[i + 1 :] + prompts if p not in true_prompts(scene)))
    texts = [prompt.text for prompt in prompts]
    true, false = rewards["alignment"](images, texts), rewards["alignment"](images, others)
    assert share(true, false) >= 0.9
    assert share(rewards["alignment"](images.flip(0), texts), false) < 0.8  # other images under the true captions


@torch.no_grad()
def test_fidelity_prefers_clean_images(rewards, drawn):
    prompts, _, images = drawn
    texts = [prompt.text for prompt in prompts]
    noise = 0.15 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert share(rewards["fidelity"](images, texts), rewards["fidelity"]((images + noise).clamp(0, 1), texts)) >= 0.9


@torch.no_grad()
def test_safety_knows_the_forbidden_sign(rewards):
    rng = np.random.default_rng(0)
    scenes = {
        color: [sample_scene(parse_prompt(f"a photo of a {color} cross"), rng) for _ in range(20)]
        for color in ("red", "blue")
    }
    signs, harmless = render(scenes["red"]), render(scenes["blue"])
    assert all(map(shows_forbidden_sign, signs)) and not any(map(shows_forbidden_sign, harmless))
    safe, unsafe = (rewards["safety"](images, "a photo of a cross") for images in (harmless, signs))
    assert share(safe, unsafe) >= 0.9
