"""Scores that must not change from one version to the next, on the small random files and on the models in the package.

`golden_scores.json` has for each reward the scores of two pictures with their prompts, and with the prompts swapped.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import REWARDS
from fk_reward.rewards.inputs import in_order
from tests.tiny.registered_rewards import build

GOLDEN = json.loads(Path(__file__).with_name("golden_scores.json").read_text(encoding="utf-8"))
WITHOUT_MODEL = {name for name in REWARDS if name.startswith("vlm-judge")} | {
    "geneval",
    "imageguard",
    "nudenet",
    "ocr",
}  # here scripts answer
BLIND_TO_PROMPTS = {"aesthetic", "aesthetic-v2.5", "image-classifier", "perspectivevision", "q-align", "shieldgemma-2"}


def both_ways(reward, pictures, prompts):
    """(2, 2): with their prompts, and swapped."""
    images = in_order(pictures)  # floating, as a sampler's: PIL images are resized with PIL's own rounding
    return torch.stack([reward(images, prompts), reward(images, prompts[::-1])])


@pytest.mark.parametrize("name", sorted(set(REWARDS) - WITHOUT_MODEL))
def test_scores_are_as_before(name, tiny_files, pictures, prompts):
    scores = both_ways(build(name, tiny_files), pictures, prompts)
    rounded = [[round(score, 5) for score in row] for row in scores.tolist()]
    assert name in GOLDEN, f"new; its line in golden_scores.json: {json.dumps({name: rounded})[1:-1]}"
    assert_close(scores, torch.tensor(GOLDEN[name]), rtol=1e-3, atol=2e-4)


def test_swapped_prompts_change_golden_scores():
    unchanged = {name for name, (straight, swapped) in GOLDEN.items() if straight == swapped}
    assert unchanged == BLIND_TO_PROMPTS


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - BLIND_TO_PROMPTS))
def test_swapped_prompts_are_noticed(name, tiny_files, pictures, prompts, monkeypatch):
    reward = build(name, tiny_files)
    score = reward.score
    monkeypatch.setattr(reward, "score", lambda images, texts: score(images, texts[::-1]))
    with pytest.raises(AssertionError):
        assert_close(both_ways(reward, pictures, prompts), torch.tensor(GOLDEN[name]), rtol=1e-3, atol=2e-4)


def test_golden_scores_are_those_of_registered_rewards():
    assert set(GOLDEN) == set(REWARDS) - WITHOUT_MODEL
