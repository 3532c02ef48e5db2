"""`reward_scale="auto"`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.potentials import POTENTIALS
from fk_reward.reward_scale import reward_scale_for_ess
from fk_reward.weights import effective_sample_size
from tests.fk_reward.filters import make_filter, random_rewards, run


@pytest.mark.parametrize("target_ess", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("potential", list(POTENTIALS))
def test_auto_reaches_the_target_ess_at_the_first_scoring_step(potential, target_ess):
    particle_filter = make_filter(2, potential=potential, reward_scale="auto", num_particles=8, target_ess=target_ess)
    rewards = random_rewards(2, 16)
    rewards[0, 8:] *= 100  # a group of another scale
    particle_filter.weigh(rewards[0])
    assert particle_filter.ess.tolist() == pytest.approx([8 * target_ess] * 2, rel=1e-6)
    scale = particle_filter.reward_scale.clone()
    assert float(scale[0]) > float(scale[1]) > 0
    particle_filter.weigh(rewards[1])
    assert torch.equal(particle_filter.reward_scale, scale), "lambda is chosen once"


def test_auto_waits_for_rewards_that_differ():
    particle_filter = make_filter(reward_scale="auto", potential="sum")
    particle_filter.weigh(torch.ones(4))
    assert particle_filter.reward_scale.tolist() == [0.0]
    assert particle_filter.resample() is None
    particle_filter.weigh(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert float(particle_filter.ess) == pytest.approx(2.0)
    particle_filter.weigh(torch.tensor([3.0, 2.0, 1.0, 0.0]), final=True)
    expected = particle_filter.reward_scale * torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(particle_filter.log_weights[0], expected, rtol=0, atol=1e-9)


def test_auto_with_rewards_that_never_differ_does_nothing():
    particle_filter = make_filter(reward_scale="auto")
    run(particle_filter, torch.ones(3, 4))
    assert particle_filter.weights.tolist() == [[0.25] * 4]


@given(
    scores=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda v: max(v) - min(v) > 1e-6),
    share=st.floats(0.1, 0.95),
)
@settings(max_examples=80, deadline=None)
def test_reward_scale_for_ess(scores, share):
    tensor = torch.tensor(scores, dtype=torch.float64)
    ess = float(effective_sample_size(reward_scale_for_ess(tensor, share * len(scores)) * tensor))
    reachable = 1.01 * scores.count(max(scores))
    assert ess == pytest.approx(max(share * len(scores), min(reachable, len(scores))), rel=1e-3)


def test_a_threshold_at_the_target_resamples_at_the_first_scoring_step():
    """The defaults: both are half of K, and neither rounding nor the seed decides."""
    for seed in range(50):
        particle_filter = make_filter(1, reward_scale="auto", num_particles=4)
        particle_filter.weigh(torch.randn(4, generator=torch.Generator().manual_seed(seed)))
        assert float(particle_filter.ess) < 0.5 * 4
