"""`ParticleFilter`: weights, evidence, ancestry, groups, errors; by hand or by brute force over the paths."""

from __future__ import annotations

import ast
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fk_reward
from fk_reward import ParticleFilter
from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.resampling import RESAMPLERS
from tests.smc.filters import generators, make_filter, random_rewards, run
from tests.smc.test_potentials import DEFINITIONS


def test_evidence_and_weights_by_hand():
    """Two particles, two scoring steps and the end, nothing resampled; difference potential, lambda 2."""
    particle_filter = make_filter(num_particles=2, reward_scale=2.0, ess_threshold=0.0)
    particle_filter.weigh(torch.tensor([0.0, math.log(2.0)]))
    assert particle_filter.weights[0].tolist() == pytest.approx([1 / 5, 4 / 5])
    assert float(particle_filter.log_evidence) == pytest.approx(math.log((1 + 4) / 2))
    assert float(particle_filter.ess) == pytest.approx(25 / 17)
    assert particle_filter.resample() is None
    particle_filter.weigh(torch.tensor([math.log(3.0), 0.0]))
    assert particle_filter.weights[0].tolist() == pytest.approx([9 / 10, 1 / 10])
    assert float(particle_filter.log_evidence) == pytest.approx(math.log((9 + 1) / 2))
    particle_filter.weigh(torch.tensor([0.0, 0.0]), final=True)
    assert float(particle_filter.log_evidence) == pytest.approx(0.0)


def test_evidence_by_hand_with_resampling():
    """The second mean is over the resampled particles, equally weighted: the evidence is the product of both means."""
    particle_filter = make_filter(num_particles=2, ess_threshold=1.0, resampling="systematic")
    particle_filter.weigh(torch.tensor([-2000.0, math.log(4.0)]))
    assert particle_filter.resample().tolist() == [1, 1]
    assert particle_filter.log_weights.tolist() == [[0.0, 0.0]]
    particle_filter.weigh(torch.tensor([math.log(4.0), math.log(8.0)]), final=True)
    assert particle_filter.weights[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert float(particle_filter.log_evidence) == pytest.approx(math.log(4.0 / 2) + math.log((1 + 2) / 2))


class DropsWeights(ParticleFilter):
    """Saboteur: what is not resampled is forgotten."""

    def resample(self, num_survivors=None):
        ancestors = super().resample(num_survivors)
        self.log_weights = torch.zeros_like(self.log_weights)
        return ancestors


class NoCorrection(ParticleFilter):
    """Saboteur: the end is one more scoring step."""

    def weigh(self, rewards, *, final=False, step=None, weight=1.0):
        super().weigh(rewards, step=step)


def assert_total_weight_is_the_final_reward(potential, filter_type=ParticleFilter):
    rewards = random_rewards(5, 6)
    particle_filter = make_filter(
        num_particles=6, potential=potential, reward_scale=3.0, ess_threshold=0.0, filter_type=filter_type
    )
    assert run(particle_filter, rewards) == [None] * 4
    expected = 3.0 * rewards[-1].double()
    torch.testing.assert_close(particle_filter.log_weights[0], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(particle_filter.log_evidence[0], expected.exp().mean().log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("potential", list(POTENTIALS))
def test_without_resampling_the_total_weight_is_lambda_times_the_final_reward(potential):
    assert_total_weight_is_the_final_reward(potential)


@pytest.mark.parametrize(("saboteur", "potential"), [(DropsWeights, "difference"), (NoCorrection, "max")])
def test_a_filter_that_loses_weight_is_caught(saboteur, potential):
    with pytest.raises(AssertionError):
        assert_total_weight_is_the_final_reward(potential, saboteur)


def brute_force_log_weights(rewards, ancestors, beta, *, potential, reward_scale):
    """Final log-weights from the definition: walk back each ancestry, sum what was given since it was last drawn."""
    num_steps, size = rewards.shape
    weights = []
    for slot in range(size):
        path, slots, position = [], [], slot
        for step in reversed(range(num_steps - 1)):
            position = position if ancestors[step] is None else int(ancestors[step][position])
            slots.insert(0, position)
        path = [float(rewards[step, slots[step]]) for step in range(num_steps - 1)]
        increments = [reward_scale * DEFINITIONS[potential](path[: i + 1], beta[: i + 1]) for i in range(len(path))]
        last_drawn = max((i for i, drawn in enumerate(ancestors) if drawn is not None), default=-1)
        kept = sum(increments[last_drawn + 1 :])
        weights.append(kept + reward_scale * float(rewards[-1, slot]) - sum(increments))
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("ess_threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("potential", list(POTENTIALS))
@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
@pytest.mark.parametrize("beta", [[1.0] * 5, [0.2, 0.0, 0.7, 0.4, 1.5]])
def test_path_statistics_follow_the_ancestors(potential, resampling, ess_threshold, beta):
    for seed in range(10):
        rewards = random_rewards(6, 5, seed=seed)
        fields = {"num_particles": 5, "potential": potential, "reward_scale": 3.0, "ess_threshold": ess_threshold}
        particle_filter = make_filter(generator=generators(seed)[0], resampling=resampling, **fields)
        ancestors = run(particle_filter, rewards, beta)
        assert any(drawn is not None for drawn in ancestors)
        expected = brute_force_log_weights(rewards, ancestors, beta, potential=potential, reward_scale=3.0)
        torch.testing.assert_close(particle_filter.log_weights[0], expected, rtol=0, atol=1e-6)


def test_groups_never_exchange_particles():
    particle_filter = make_filter(num_groups=3, num_particles=4, reward_scale=5.0, ess_threshold=1.0)
    for row in random_rewards(20, 12):
        particle_filter.weigh(row)
        ancestors = particle_filter.resample()
        assert torch.equal(ancestors // 4, torch.arange(12) // 4)


@pytest.mark.parametrize("fields", [{}, {"reward_scale": "auto"}, {"potential": "max", "selection": "sample"}])
def test_a_group_alone_gives_the_same_as_in_a_batch(fields):
    rewards, fields = random_rewards(6, 12), {"reward_scale": 1.5, "num_particles": 4} | fields
    together = make_filter(3, generators(1, 2, 3), **fields)
    ancestors = run(together, rewards)
    selected = together.select(2)
    for group, generator in enumerate(generators(1, 2, 3)):
        alone = make_filter(1, generator, **fields)
        own = run(alone, rewards[:, 4 * group : 4 * group + 4])
        for step, drawn in enumerate(own):
            batch = ancestors[step]
            mine = torch.arange(4) if batch is None else batch[4 * group : 4 * group + 4] - 4 * group
            assert torch.equal(mine, torch.arange(4) if drawn is None else drawn)
        assert torch.equal(alone.log_weights[0], together.log_weights[group])
        assert torch.equal(alone.log_evidence[0], together.log_evidence[group])
        assert torch.equal(alone.select(2)[0], selected[group])


def test_only_the_groups_below_the_threshold_are_resampled():
    particle_filter = make_filter(num_groups=2, num_particles=2, ess_threshold=0.9)
    particle_filter.weigh(torch.tensor([0.0, 0.1, 0.0, 50.0]))
    assert particle_filter.resample().tolist() == [0, 1, 3, 3]
    assert particle_filter.log_weights[0].tolist() == pytest.approx([0.0, 0.1])
    assert particle_filter.log_weights[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_equal_weights_are_never_resampled(ess_threshold):
    particle_filter = make_filter(ess_threshold=ess_threshold)
    for reward in (1.0, -3.0, 0.5):
        particle_filter.weigh(torch.full((4,), reward))
        assert particle_filter.resample() is None


def test_threshold_one_resamples_at_the_slightest_difference():
    particle_filter = make_filter(ess_threshold=1.0)
    particle_filter.weigh(torch.tensor([0.0, 0.0, 0.0, 1e-6]))
    assert particle_filter.resample() is not None


def test_threshold_zero_and_one_particle_never_resample():
    for fields in ({"ess_threshold": 0.0}, {"num_particles": 1, "ess_threshold": 1.0}):
        particle_filter = make_filter(**fields)
        particle_filter.weigh(100 * torch.arange(particle_filter.num_particles).float())
        assert particle_filter.resample() is None


def test_the_same_generator_gives_the_same_run():
    def once(seed):
        particle_filter = make_filter(
            2, generators(seed)[0], resampling="multinomial", ess_threshold=1.0, selection="sample"
        )
        ancestors = run(particle_filter, random_rewards(8, 8))
        return torch.stack(ancestors), particle_filter.select(3)

    for first, second in zip(once(3), once(3), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(once(3)[0], once(4)[0])


def test_no_global_randomness():
    state = torch.random.get_rng_state()
    particle_filter = make_filter(ess_threshold=1.0, selection="sample")
    run(particle_filter, random_rewards(4, 4))
    particle_filter.select(2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_huge_rewards_do_not_overflow():
    particle_filter = make_filter(reward_scale=1e6, ess_threshold=1.0)
    particle_filter.weigh(torch.tensor([1e5, 1e5 + 1, 0.0, -1e5]))
    assert particle_filter.resample().tolist() == [1, 1, 1, 1]
    particle_filter.weigh(torch.tensor([1.0, 2.0, 3.0, 1e5]), final=True)
    assert torch.isfinite(particle_filter.log_weights).all()
    assert torch.isfinite(particle_filter.log_evidence).all()


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_names_prompt_particle_and_step(value, final):
    rewards = torch.zeros(6)
    rewards[4] = value
    with pytest.raises(ValueError, match="prompt 1, particle 1 at step 40"):
        make_filter(num_groups=2, num_particles=3).weigh(rewards, final=final, step=40)


def test_rewards_that_the_caller_writes_to_later_stay_what_they_were():
    """Float64 on the CPU needs no conversion; a reward may fill one buffer again and again."""
    particle_filter, rewards = make_filter(), torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    particle_filter.weigh(rewards, final=True)
    rewards.fill_(7.0)
    assert particle_filter.select(1).tolist() == [[3]]


def test_misuse_raises():
    particle_filter = make_filter()
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        particle_filter.weigh(torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="final=True"):
        particle_filter.select(1)
    particle_filter.weigh(torch.zeros(4), final=True)
    with pytest.raises(RuntimeError, match="new ParticleFilter"):
        particle_filter.weigh(torch.zeros(4))
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="num_selected"):
            particle_filter.select(wrong)
    with pytest.raises(ValueError, match="num_groups"):
        make_filter(num_groups=0)
    with pytest.raises(ValueError, match="2 groups, got 3"):
        make_filter(2, generators(0, 1, 2))


def test_every_resampler_serves_the_filter():
    for name in RESAMPLERS:
        particle_filter = make_filter(resampling=name, ess_threshold=1.0, reward_scale=50.0)
        particle_filter.weigh(torch.tensor([0.0, 0.0, 9.0, 0.0]))
        assert particle_filter.resample().tolist() == [2, 2, 2, 2]


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


@pytest.mark.parametrize("weights", [(0.3, 1.0), (0.0, 2.5)])
@pytest.mark.parametrize("potential", list(POTENTIALS))
def test_weights_of_the_steps_leave_every_mass_alone(potential, weights):
    class Weighted(ParticleFilter):
        """Weighs the first two rewards by these."""

        def weigh(self, rewards, *, final=False, step=None, weight=1.0):
            given = list(weights)[int(self._path.increments.any())]
            super().weigh(rewards, final=final, step=step, weight=weight if final else given)

    assert_exact(Weighted, potential=potential, ess_threshold=0.8)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="weight should be"):
        make_filter().weigh(torch.zeros(4), weight=weight)


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

    def weigh(self, rewards, *, final=False, step=None, weight=1.0):
        super().weigh(rewards, final=final, step=step, weight=weight)
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


@pytest.mark.parametrize("place", [0, 3])
def test_each_of_those_that_are_drawn_follows_the_weights(place):
    """The first one, too: best first it would be the best of the draws."""
    rewards = [0.0, 1.0, -1.0, 2.0]
    _, selected = sample_frequencies(4, rewards)
    found = np.bincount(selected[:, place].numpy(), minlength=4) / 6_000
    np.testing.assert_allclose(found, np.exp(rewards) / np.exp(rewards).sum(), atol=5 * 0.5 / math.sqrt(6_000))


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


PARTICLE_LAYER = (
    "value_checks",
    "smc.potentials",
    "smc.resampling",
    "smc.weights",
    "smc.particle_filter",
    "smc.reward_scale",
    "search.base",
    "search.diversity",
    "search.fkd_args",
    "search.feynman_kac",
)


@pytest.mark.parametrize("module", PARTICLE_LAYER)
def test_the_particle_layer_imports_torch_and_itself_only(module):
    tree = ast.parse((Path(fk_reward.__file__).parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    allowed = {"torch", "fk_reward.text", *(f"fk_reward.{name}" for name in PARTICLE_LAYER)}
    assert all(name in allowed or name.split(".")[0] in sys.stdlib_module_names for name in names), names
