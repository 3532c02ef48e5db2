"""Which of the final particles come back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.smc.filters import generators, make_filter


def test_select_best_is_ordered_by_final_reward_whatever_the_weights():
    particle_filter = make_filter(num_groups=2, num_particles=3)
    particle_filter.weigh(torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0, 5.0]), final=True)
    assert particle_filter.select(3).tolist() == [[1, 2, 0], [2, 0, 1]]
    assert particle_filter.select(1).tolist() == [[1], [2]]


def sample_frequencies(num_selected, rewards, *, num_groups=6_000):
    """Share of the groups in which each particle was selected; many equal groups stand for many runs."""
    size = len(rewards)
    particle_filter = make_filter(
        num_groups, generators(0)[0], num_particles=size, selection="sample", reward_scale=1.0
    )
    particle_filter.weigh(torch.tensor(rewards).repeat(num_groups), final=True)
    selected = particle_filter.select(num_selected)
    final = torch.tensor(rewards)[selected]
    assert (final.diff(dim=1) <= 0).all(), "not best first"
    return np.bincount(selected.flatten().numpy(), minlength=size) / num_groups, selected


@pytest.mark.parametrize("num_selected", [1, 2, 3, 4])
def test_select_sample_draws_with_replacement_by_weight(num_selected):
    """Particle k comes n W_k times on average, and as evenly as whole numbers allow."""
    rewards = [0.0, 1.0, -1.0, 2.0]
    frequencies, selected = sample_frequencies(num_selected, rewards)
    expected = num_selected * np.exp(rewards) / np.exp(rewards).sum()
    np.testing.assert_allclose(frequencies, expected, atol=5 * 0.5 / math.sqrt(6_000))
    for row in selected[:100].tolist():
        counts = np.bincount(row, minlength=4)
        assert (np.floor(expected) <= counts).all(), row
        assert (counts <= np.ceil(expected)).all(), row


@pytest.mark.parametrize("num_selected", [1, 4, 16])
def test_however_many_are_drawn_they_follow_the_tilted_law(num_selected):
    """16 draws of N(0, 1), r(x) = x, lambda 1: the tilted mean is 1, by 16 weighted particles .87.

    Without replacement, all 16 of 16 are draws of N(0, 1) again, of mean 0.
    """
    num_groups = 4000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_groups, 16, generator=generator, dtype=torch.float64)
    particle_filter = make_filter(num_groups, generator, num_particles=16, selection="sample", num_resamples=0)
    particle_filter.weigh(x.flatten(), final=True)
    drawn = x.gather(1, particle_filter.select(num_selected))
    weighted = (particle_filter.weights * x).sum(1)
    assert float(weighted.mean()) == pytest.approx(0.87, abs=0.02)
    assert abs(float((drawn.mean(1) - weighted).mean())) < 5 * float((drawn.mean(1) - weighted).std()) / num_groups**0.5


def forbidding(rewards, *, num_groups=1, **fields):
    particle_filter = make_filter(num_groups, generators(0)[0], num_particles=len(rewards) // num_groups, **fields)
    particle_filter.weigh(torch.tensor(rewards), final=True)
    return particle_filter


@pytest.mark.parametrize("reward_scale", [0.0, 1.0, "auto"])
@pytest.mark.parametrize("selection", ["best", "sample"])
def test_a_forbidden_image_never_comes_back_while_another_is_allowed(selection, reward_scale):
    particle_filter = forbidding(
        [-math.inf, 1.0, 2.0, -math.inf, -math.inf, -math.inf, -math.inf, 3.0],
        num_groups=2,
        selection=selection,
        reward_scale=reward_scale,
    )
    for number in (1, 2, 3, 4):
        selected = particle_filter.select(number)
        assert selected.shape == (2, number)
        assert set(selected[0].tolist()) <= {1, 2}
        assert set(selected[1].tolist()) == {3}
    assert particle_filter.weights[1].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_best_repeats_the_allowed_images_evenly_and_says_so():
    particle_filter = forbidding([-math.inf, 1.0, 2.0, -math.inf], selection="best")
    assert particle_filter.select(2).tolist() == [[2, 1]]
    assert particle_filter.notes == []
    assert particle_filter.select(3).tolist() == [[2, 2, 1]]
    assert "Of the 4 finished images of prompt 0, 2 are allowed" in particle_filter.notes[0]


def test_nothing_allowed_is_an_error_that_names_the_prompts():
    with pytest.raises(ValueError, match=r"All 2 finished images of prompts 0, 2 have a reward of -inf.*abstain=True"):
        forbidding([-math.inf, -math.inf, 0.0, -math.inf, -math.inf, -math.inf], num_groups=3)


@pytest.mark.parametrize("selection", ["best", "sample"])
def test_abstaining_from_a_prompt_leaves_the_others_alone(selection):
    rewards = [-math.inf, -math.inf, 1.0, 2.0]
    particle_filter = forbidding(rewards, num_groups=2, selection=selection, abstain=True)
    assert particle_filter.abstained.tolist() == [True, False]
    assert particle_filter.select(2).shape == (2, 2)
    assert particle_filter.log_evidence.tolist() == pytest.approx([-math.inf, math.log((math.e + math.e**2) / 2)])
    assert (particle_filter.weights[0].tolist(), float(particle_filter.ess[0])) == ([0.0, 0.0], 0.0)
    assert "All finished images of prompt 0" in particle_filter.notes[0]
