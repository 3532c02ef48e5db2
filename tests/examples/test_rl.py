"""The examples of training by reinforcement learning: a second process for the reward, and TRL's trainer."""

from __future__ import annotations

import math
import os
import sys

import pytest
import torch

from examples.rl import reward_workers
from fk_reward.rewards.workers import RewardWorkers

PATHS = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


class Here:
    """The reward in this process, in the place of workers; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, images, prompts):
        self.asked.append((images, prompts))
        scores = images.mean(dim=(1, 2, 3))
        return type("Done", (), {"result": lambda self: scores})()


def test_the_policy_gradient_is_that_of_the_density():
    """Steps are Gaussian: the log-density of the drawn samples, written out, has the same gradient direction."""
    policy = reward_workers.Policy("shapes-sd", 3, 3.0)
    drawn = policy.draw(["a photo of a star"] * 2, torch.Generator().manual_seed(0))
    assert drawn.images.shape == (2, 3, 64, 64)
    found = list(policy.log_probabilities(drawn))
    assert [each.shape for each in found] == [(2,), (2,)]
    with torch.no_grad():
        told = policy._told(drawn.prompts)
        mean, spread = policy._move(drawn.samples[0], 0, told)
    normal = torch.distributions.Normal(mean, spread)
    expected = normal.log_prob(drawn.samples[1]) - normal.log_prob(mean)
    torch.testing.assert_close(found[0], expected.flatten(1).mean(dim=1), rtol=1e-4, atol=1e-4)
    assert 0.7 < -2 * found[0].mean() < 1.3  # the squares of standard normals


def test_an_update_makes_the_better_image_more_likely():
    policy = reward_workers.Policy("shapes-sd", 3, 3.0)
    drawn = policy.draw(["a photo of a star"] * 2, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def lead():
        likelihoods = torch.stack(list(policy.log_probabilities(drawn))).sum(dim=0)
        return (likelihoods[0] - likelihoods[1]).item()

    before = lead()
    optimizer = torch.optim.SGD(policy.weights, lr=1e-2)
    reward_workers.update(policy, optimizer, drawn, torch.tensor([1.0, 0.0]))
    assert lead() > before


def test_every_batch_is_scored():
    here = Here()
    means = reward_workers.main(workers=here, num_rounds=2)
    assert means == pytest.approx([images.mean().item() for images, _ in here.asked]) and len(means) == 2
    assert all(prompts == ["a photo of a red circle"] * 2 for _, prompts in here.asked)


@pytest.mark.slow
def test_in_two_processes():
    with RewardWorkers("shapes-clipscore", environment=PATHS) as workers:
        assert len(reward_workers.main(workers=workers, num_rounds=1)) == 1


@pytest.mark.slow
def test_trl_accepts_the_listeners_reward(tmp_path):
    pytest.importorskip("trl")
    from examples.rl import grpo_listener

    logs = grpo_listener.main(out=tmp_path, seed=1)
    steps = [log for log in logs if "rewards/listener_reward/mean" in log]
    assert len(steps) == 2
    assert all(math.isfinite(log["reward"]) for log in steps)
