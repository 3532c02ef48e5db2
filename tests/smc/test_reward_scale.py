"""`reward_scale="auto"`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.reward_scale import LARGEST_TILT, USUAL_TILT, reward_scale_for_ess, tempered_reward_scale
from fk_reward.smc.weights import effective_sample_size
from tests.smc.filters import make_filter, random_rewards, run


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
    particle_filter.weigh(1e-3 * rewards[1])
    assert torch.equal(particle_filter.reward_scale, scale), "rewards that differ less do not raise lambda"


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


def test_previews_of_almost_equal_reward_cannot_choose_a_huge_lambda():
    """Tempering alone gives 1e6 and more here."""
    almost_equal = 0.5 + torch.tensor([0.0, 1e-7, 2e-7, 3e-7], dtype=torch.float64)
    for spread, bound in ((0.1, LARGEST_TILT / 0.1), (None, LARGEST_TILT / (1e-3 * 0.5))):
        particle_filter = make_filter(reward_scale="auto", spread=spread)
        particle_filter.weigh(almost_equal)
        assert float(particle_filter.reward_scale) == pytest.approx(bound, rel=1e-5)
        assert float(particle_filter.ess) > 3.99, "and so nothing happens"


@given(
    scores=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12).filter(lambda v: max(v) > min(v)),
    unit=st.sampled_from([1e-3, 1.0, 1e4]),
)
@settings(max_examples=60, deadline=None)
def test_the_bound_has_the_unit_of_the_reward(scores, unit):
    tensor = torch.tensor(scores, dtype=torch.float64)
    target = 0.5 * len(scores)
    scale = tempered_reward_scale(tensor, target, spread=0.2)
    assert 0 < scale <= LARGEST_TILT / 0.2
    assert float(effective_sample_size(scale * tensor)) >= min(target, 1.01 * scores.count(max(scores))) * (1 - 1e-6)
    assert tempered_reward_scale(unit * tensor, target, spread=0.2 * unit) == pytest.approx(scale / unit, rel=1e-6)


def test_later_rewards_that_differ_more_lower_lambda_and_the_finished_ones_have_the_last_word():
    """The law that is returned is that of the last lambda: the weights are exp(lambda r) of the finished rewards."""
    particle_filter = make_filter(reward_scale="auto", ess_threshold=0.0, potential="max")
    shape = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    scales = []
    for size in (0.01, 0.1, 1.0):
        particle_filter.weigh(size * shape, final=size == 1.0)
        scales.append(float(particle_filter.reward_scale))
        assert float(effective_sample_size(scales[-1] * size * shape)) == pytest.approx(2.0, rel=1e-6)
    assert scales == pytest.approx([scales[-1] * 100, scales[-1] * 10, scales[-1]])
    torch.testing.assert_close(particle_filter.log_weights[0], scales[-1] * shape, rtol=0, atol=1e-9)


def lambdas_of_blurred_previews(num_groups=150):
    """Predictions are conditional means of a reward of spread 1: their spreads are .05, .4, .6, .8 and at last 1."""
    generator = torch.Generator().manual_seed(0)
    particle_filter = make_filter(num_groups, generator, reward_scale="auto", potential="max", spread=1.0)
    rewards, known = torch.zeros(num_groups * 4), 0.0
    for spread in (0.05, 0.4, 0.6, 0.8, 1.0):
        rewards = rewards + (spread**2 - known) ** 0.5 * torch.randn(len(rewards), generator=generator)
        known = spread**2
        particle_filter.weigh(rewards, final=spread == 1.0)
        ancestors = None if spread == 1.0 else particle_filter.resample()
        rewards = rewards if ancestors is None else rewards[ancestors]
    return particle_filter.reward_scale


def test_the_first_preview_does_not_decide_how_hard_the_finished_images_are_weighed():
    """Bisection at the first preview alone gives a median near 30, where 1 or 2 are right."""
    low, median, high = torch.quantile(
        lambdas_of_blurred_previews(), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    ).tolist()
    assert 0.5 < low < 1.2 < median < 2.2 < high <= 3.0


def test_auto_says_that_its_evidence_is_no_estimate():
    assert "log_evidence is no estimate" in " ".join(make_filter(reward_scale="auto").notes)
    assert make_filter(reward_scale=1.0).notes == []


def test_predictions_of_minus_infinity_do_not_enter_the_bisection():
    particle_filter, without = make_filter(reward_scale="auto"), make_filter(reward_scale="auto", num_particles=3)
    particle_filter.weigh(torch.tensor([0.0, 1.0, 2.0, -torch.inf]))
    without.weigh(torch.tensor([0.0, 1.0, 2.0]))
    assert float(particle_filter.reward_scale) == pytest.approx(float(without.reward_scale))


def test_card_takes_lambda_from_the_spread_and_leaves_it():
    rewards = random_rewards(3, 8)
    by_card, by_number = (
        make_filter(2, reward_scale=reward_scale, spread=0.2) for reward_scale in ("card", USUAL_TILT / 0.2)
    )
    run(by_card, rewards)
    run(by_number, rewards)
    assert by_card.reward_scale.tolist() == [7.5, 7.5]
    assert torch.equal(by_card.log_evidence, by_number.log_evidence)
    assert by_card.notes == by_number.notes == []


def test_card_without_a_spread_is_auto_and_says_so():
    rewards = random_rewards(3, 8)
    by_card, by_auto = (make_filter(2, reward_scale=reward_scale) for reward_scale in ("card", "auto"))
    run(by_card, rewards)
    run(by_auto, rewards)
    assert torch.equal(by_card.reward_scale, by_auto.reward_scale)
    assert by_card.notes == ["The card of the reward states no spread: " + by_auto.notes[0]]
