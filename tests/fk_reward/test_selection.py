"""Which of the final particles come back."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.fk_reward.filters import generators, make_filter


def test_select_best_is_ordered_by_final_reward_whatever_the_weights():
    particle_filter = make_filter(num_groups=2, num_particles=3)
    particle_filter.weigh(torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0, 5.0]), final=True)
    assert particle_filter.select(3).tolist() == [[1, 2, 0], [2, 0, 1]]
    assert particle_filter.select(1).tolist() == [[1], [2]]


def sample_frequencies(num_selected, rewards, *, num_groups=20_000):
    """Share of the groups in which each particle was selected; many equal groups stand for many runs."""
    size = len(rewards)
    particle_filter = make_filter(
        num_groups, generators(0)[0], num_particles=size, selection="sample", reward_scale=1.0
    )
    particle_filter.weigh(torch.tensor(rewards).repeat(num_groups), final=True)
    selected = particle_filter.select(num_selected)
    final = torch.tensor(rewards)[selected]
    assert (final.diff(dim=1) <= 0).all(), "not best first"
    assert all(len(set(row)) == num_selected for row in selected[:100].tolist())
    return np.bincount(selected.flatten().numpy(), minlength=size) / num_groups


def test_select_sample_draws_by_weight():
    rewards = [0.0, 1.0, -1.0, 2.0]
    frequencies, weights = sample_frequencies(1, rewards), np.exp(rewards) / np.exp(rewards).sum()
    np.testing.assert_allclose(frequencies, weights, atol=5 * 0.5 / math.sqrt(20_000))


def test_select_sample_without_replacement_is_successive_sampling():
    """Inclusion probability of i in two draws: p_i + sum_j p_j p_i / (1 - p_j)."""
    rewards = [0.0, 1.0, -1.0]
    p = np.exp(rewards) / np.exp(rewards).sum()
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)]
    np.testing.assert_allclose(sample_frequencies(2, rewards), expected, atol=5 * 0.5 / math.sqrt(20_000))
    assert sample_frequencies(3, rewards, num_groups=100).tolist() == [1.0, 1.0, 1.0]
