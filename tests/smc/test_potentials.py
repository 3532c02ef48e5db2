"""Increments of the potentials, by hand and against their definitions over whole paths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.smc.potentials import POTENTIALS, PathStatistics

DEFINITIONS = {
    "difference": lambda r, beta: beta[-1] * r[-1] - (beta[-2] * r[-2] if len(r) > 1 else 0.0),
    "max": lambda r, beta: beta[-1] * max(r),
    "sum": lambda r, beta: sum(b * one for b, one in zip(beta, r, strict=True)),
    "immediate": lambda r, beta: beta[-1] * r[-1],
}
"""By the rewards so far and their weights."""


def increments_along(name, path, weights=None):
    """Increments of one particle at each step of its path of rewards."""
    statistics, increments = PathStatistics.initial(1, 1), []
    for reward, weight in zip(path, weights or [1.0] * len(path), strict=True):
        rewards = torch.tensor([[reward]], dtype=torch.float64)
        statistics = replace(statistics, weight=weight)
        increments.append(POTENTIALS[name](rewards, statistics))
        statistics = statistics.update(rewards, increments[-1])
    return [float(value) for value in increments], statistics


def test_every_potential_has_its_definition_here():
    assert set(DEFINITIONS) == set(POTENTIALS)


@pytest.mark.parametrize("name", list(POTENTIALS))
@given(path=st.lists(st.floats(-100, 100), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_definition(name, path):
    for weights in ([1.0] * len(path), [(i % 3) / 2 for i in range(len(path))]):
        increments, statistics = increments_along(name, path, weights)
        expected = [DEFINITIONS[name](path[: i + 1], weights[: i + 1]) for i in range(len(path))]
        assert increments == pytest.approx(expected, abs=1e-9)
        assert float(statistics.increments) == pytest.approx(sum(increments), abs=1e-9)


@pytest.mark.parametrize("name", list(POTENTIALS))
def test_the_zero_of_the_reward_moves_no_particle(name):
    """A constant added to all rewards adds the same to all particles: with `max(beta r)` it would not."""
    paths, weights = ([-0.5, -1.0, -0.2], [-2.0, -0.1, -0.3]), [0.1, 0.5, 0.9]
    gaps = []
    for shift in (0.0, 7.0):
        first, second = (increments_along(name, [r + shift for r in path], weights)[0] for path in paths)
        gaps.append([a - b for a, b in zip(first, second, strict=True)])
    assert gaps[0] == pytest.approx(gaps[1])


@pytest.mark.parametrize("name", list(POTENTIALS))
def test_a_weight_of_zero_lets_the_first_step_say_nothing(name):
    assert increments_along(name, [3.0], [0.0])[0] == [0.0]


def test_all_negative_rewards_have_a_negative_maximum():
    assert increments_along("max", [-3.0, -5.0, -1.0])[0] == [-3.0, -3.0, -1.0]


def test_difference_telescopes_to_the_last_reward():
    assert sum(increments_along("difference", [0.3, 2.0, -1.5])[0]) == pytest.approx(-1.5)


@pytest.mark.parametrize("name", list(POTENTIALS))
def test_float32_rewards_are_not_rounded_further(name):
    rewards = torch.tensor([[1.0, 1.0 + 2**-20]], dtype=torch.float32)
    increments = POTENTIALS[name](rewards, PathStatistics.initial(1, 2))
    assert increments.dtype == torch.float64
    assert float(increments[0, 1] - increments[0, 0]) == 2**-20


def test_gather_follows_the_ancestors_in_each_group():
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    statistics = PathStatistics.initial(2, 2).update(rewards, 10 * rewards).gather(torch.tensor([[1, 1], [0, 1]]))
    assert statistics.last.tolist() == [[2.0, 2.0], [3.0, 4.0]]
    assert statistics.increments.tolist() == [[20.0, 20.0], [30.0, 40.0]]
    assert statistics.maximum.tolist() == statistics.total.tolist() == statistics.last.tolist()
