"""Rewards in the signatures of trainers: what they get, and what they answer."""

from __future__ import annotations

import pytest
import torch

from fk_reward.rewards.workers import DDPOReward, FlowGRPOReward


def bright(images, prompts):
    assert isinstance(prompts, list)
    return images.mean(dim=(1, 2, 3))


def test_as_ddpo_calls_it():
    """(images, prompts, metadata) -> (scores, metadata); tuples, and a gradient that nobody wants."""
    images = torch.rand(3, 3, 4, 4, requires_grad=True)
    scores, more = DDPOReward(bright)(images, ("a", "b", "c"), ({}, {}, {}))
    assert (scores.shape, scores.requires_grad, more) == ((3,), False, {})
    assert torch.as_tensor(scores).dtype == torch.float32


def test_as_flow_grpo_calls_it():
    """The trainer reads "avg" and logs every other key."""
    images = torch.rand(2, 3, 4, 4)
    fn = FlowGRPOReward({"bright": bright, "dark": lambda i, p: -bright(i, p)}, weights={"dark": 0.25})
    scores, more = fn(images, ("a", "b"), ({}, {}), only_strict=False)
    assert more == {}
    torch.testing.assert_close(scores["avg"], scores["bright"] + 0.25 * scores["dark"])
    assert all(value.shape == (2,) for value in scores.values())


def test_refusals():
    with pytest.raises(ValueError, match='none of them called "avg"'):
        FlowGRPOReward({"avg": bright})
    with pytest.raises(ValueError, match="weights of no reward: dark"):
        FlowGRPOReward({"bright": bright}, weights={"dark": 1.0})
