"""A reward of -inf on predictions: the target stays exact, against a discrete chain whose law can be written down."""

from __future__ import annotations

import itertools

import pytest
import torch

from fk_reward import ParticleFilter
from fk_reward.smc.potentials import POTENTIALS
from tests.smc.filters import make_filter

FORBIDDEN = -torch.inf
REWARD_SCALE = 1.2
COIN = 0.4
"""Probability of a 1 in each of the three tosses that make a sample."""

OUTCOMES = list(itertools.product((0, 1), repeat=3))
FINAL = torch.tensor([0.0, 0.5, FORBIDDEN, -0.5, 1.0, FORBIDDEN, 1.5, 0.2], dtype=torch.float64)
FIRST = torch.tensor([0.3, FORBIDDEN])
"""By the first toss: all that is good lies behind a prediction that looks forbidden."""

SECOND = torch.tensor([FORBIDDEN, 0.1, 0.4, FORBIDDEN])
"""By the first two, one of which looks forbidden whatever came before."""


def exact_masses():
    """`(8,)`: p(x) exp(lambda r(x)) of each outcome, not normalised; their sum is the evidence."""
    plain = [COIN ** sum(x) * (1 - COIN) ** (3 - sum(x)) for x in OUTCOMES]
    return torch.tensor(plain, dtype=torch.float64) * torch.exp(REWARD_SCALE * FINAL)


def estimated_masses(filter_type=ParticleFilter, *, num_runs=4000, **fields):
    """Mean and standard error over the runs of Z_hat * (weight on each outcome), which is unbiased at any K."""
    generator = torch.Generator().manual_seed(0)
    particle_filter = make_filter(num_runs, generator, filter_type, reward_scale=REWARD_SCALE, abstain=True, **fields)
    code = torch.zeros(num_runs * 4, dtype=torch.int64)
    for rewards in (FIRST, SECOND, FINAL):
        code = 2 * code + (torch.rand(len(code), generator=generator) < COIN)
        particle_filter.weigh(rewards[code], final=rewards is FINAL)
        ancestors = None if rewards is FINAL else particle_filter.resample()
        code = code if ancestors is None else code[ancestors]
    masses = torch.zeros(num_runs, 8, dtype=torch.float64)
    masses.scatter_add_(1, code.view(num_runs, 4), particle_filter.weights)
    masses *= particle_filter.log_evidence.exp()[:, None]
    return masses.mean(0), masses.std(0) / num_runs**0.5


def assert_exact(filter_type=ParticleFilter, **fields):
    mean, error = estimated_masses(filter_type, **fields)
    off = (mean - exact_masses()).abs() / error.clamp_min(1e-12)
    assert off.max() < 4.5, f"outcomes are off by {[f'{value:.1f}' for value in off.tolist()]} standard errors"


@pytest.mark.parametrize("ess_threshold", [0.6, 1.0])
@pytest.mark.parametrize("potential", list(POTENTIALS))
def test_four_particles_estimate_every_mass_without_bias(potential, ess_threshold):
    assert_exact(potential=potential, ess_threshold=ess_threshold)


class Forbids(ParticleFilter):
    """Saboteur: a prediction of -inf ends a particle, as far as numbers allow."""

    def _floored(self, grouped):
        return super()._floored(grouped).clamp_min(-1e300).where(grouped > FORBIDDEN, -1e3)


class KeepsTheFloor(ParticleFilter):
    """Saboteur: what a prediction of -inf cost its particle is not given back."""

    def weigh(self, rewards, *, final=False, step=None):
        super().weigh(rewards, final=final, step=step)
        if not final:
            self._applied += (rewards.view(self.num_groups, -1) == FORBIDDEN).double()


@pytest.mark.parametrize("saboteur", [Forbids, KeepsTheFloor])
def test_a_filter_that_takes_it_for_final_is_caught(saboteur):
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(saboteur, potential="immediate", ess_threshold=1.0)


def test_the_toy_has_good_samples_behind_predictions_that_look_forbidden():
    behind = [mass for mass, x in zip(exact_masses(), OUTCOMES, strict=True) if FIRST[x[0]] == FORBIDDEN]
    assert float(sum(behind) / exact_masses().sum()) > 0.5


@pytest.mark.parametrize("potential", list(POTENTIALS))
def test_a_step_at_which_no_prediction_is_finite_moves_nobody(potential):
    particle_filter = make_filter(2, potential=potential, ess_threshold=1.0)
    particle_filter.weigh(torch.tensor([0.0, 1.0, 2.0, 3.0] * 2))
    particle_filter.resample()
    particle_filter.weigh(torch.tensor([FORBIDDEN] * 4 + [0.0, 0.0, 0.0, FORBIDDEN]))
    assert particle_filter.log_weights[0].tolist() == [0.0] * 4
    ancestors = particle_filter.resample()
    assert ancestors is None or ancestors[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("reward_scale", [0.5, 2.0])
def test_it_counts_as_e_times_less_likely_than_the_worst_of_its_prompt(reward_scale):
    particle_filter = make_filter(reward_scale=reward_scale, ess_threshold=0.0)
    particle_filter.weigh(torch.tensor([3.0, FORBIDDEN, 1.0, FORBIDDEN]))
    worst = float(particle_filter.log_weights[0, 2])
    assert particle_filter.log_weights[0].tolist() == pytest.approx([3 * reward_scale, worst - 1, worst, worst - 1])
    assert "2 predictions of prompt 0 had a reward of -inf" in particle_filter.notes[0]


def test_a_finished_image_is_forbidden_at_lambda_zero_too():
    particle_filter = make_filter(reward_scale=0.0)
    particle_filter.weigh(torch.tensor([1.0, FORBIDDEN, 2.0, FORBIDDEN]), final=True)
    assert particle_filter.weights.tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert float(particle_filter.log_evidence) == pytest.approx(torch.log(torch.tensor(0.5)).item())
