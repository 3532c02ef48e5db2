"""`ParticleFilter`: weights, evidence, ancestry, groups, errors; by hand or by brute force over the paths."""

from __future__ import annotations

import math

import pytest
import torch

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

    def weigh(self, rewards, *, final=False, step=None):
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


def brute_force_log_weights(rewards, ancestors, *, potential, reward_scale):
    """Final log-weights from the definition: walk back each ancestry, sum what was given since it was last drawn."""
    num_steps, size = rewards.shape
    weights = []
    for slot in range(size):
        path, slots, position = [], [], slot
        for step in reversed(range(num_steps - 1)):
            position = position if ancestors[step] is None else int(ancestors[step][position])
            slots.insert(0, position)
        path = [float(rewards[step, slots[step]]) for step in range(num_steps - 1)]
        increments = [reward_scale * DEFINITIONS[potential](path[: i + 1]) for i in range(len(path))]
        last_drawn = max((i for i, drawn in enumerate(ancestors) if drawn is not None), default=-1)
        kept = sum(increments[last_drawn + 1 :])
        weights.append(kept + reward_scale * float(rewards[-1, slot]) - sum(increments))
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("ess_threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("potential", list(POTENTIALS))
@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_path_statistics_follow_the_ancestors(potential, resampling, ess_threshold):
    for seed in range(10):
        rewards = random_rewards(6, 5, seed=seed)
        fields = {"num_particles": 5, "potential": potential, "reward_scale": 3.0, "ess_threshold": ess_threshold}
        particle_filter = make_filter(generator=generators(seed)[0], resampling=resampling, **fields)
        ancestors = run(particle_filter, rewards)
        assert any(drawn is not None for drawn in ancestors)
        expected = brute_force_log_weights(rewards, ancestors, potential=potential, reward_scale=3.0)
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
