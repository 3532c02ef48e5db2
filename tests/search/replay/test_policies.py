"""Policies on recorded trajectories: a replay does what the search does, at its price."""

import itertools
import math

import numpy as np
import pytest
import torch

from fk_reward.search import BeamSearch, BestOfN, DraftRefine, FKSteeringConfig, Pruning
from fk_reward.search.base import forecast
from fk_reward.search.replay.policies import Policy, Prices, Replayer, best_of_n, best_of_weights

STEPS = 8
CONFIGS = (
    BestOfN(num_particles=3),
    Pruning(num_particles=5, keep=(2,), at=(0.4,)),
    Pruning(num_particles=6, keep=(4, 3, 1), at=(0.1, 0.5, 0.9)),
    Pruning(num_particles=4, keep=(4, 2), at=(0.25, 0.75)),  # a cut that drops nobody
    Pruning(num_particles=6, keep=(3, 2), at=(0.5, 0.51)),  # both at one step
)


def searched(config, rewards):
    """What the search itself selects: `(n, T)` rewards of its starts, to the place of the best."""
    population = config.population()
    population.begin(STEPS)
    rows = torch.arange(config.num_particles)
    for step in population.scoring_steps(STEPS):
        ancestors = population.advance(rewards[rows, step], step=step)
        rows = rows if ancestors is None else rows[ancestors]
    population.finish(rewards[rows, -1])
    return rows[population.select(1)[0, 0]]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_replay_chooses_what_the_search_chooses(config, rng):
    values = rng.standard_normal((3, 12, STEPS))
    replayer, policy = Replayer(values, num_subsets=40), Policy.of(config, STEPS)
    (orders,) = replayer._orders
    chosen = replayer._chosen(policy, orders)
    for prompt, subset in itertools.product(range(3), range(40)):
        starts = orders[prompt, subset, : config.num_particles]
        rewards = torch.tensor(values[prompt], dtype=torch.float32)[starts]
        assert chosen[prompt, subset] == starts[searched(config, rewards)]


@pytest.mark.parametrize("config", CONFIGS)
def test_random_subsets_estimate_the_mean_of_all_subsets(config, rng):
    values = rng.standard_normal((1, 7, STEPS))
    rewards = torch.tensor(values[0], dtype=torch.float32)
    finished = [
        rewards[list(subset)][searched(config, rewards[list(subset)]), -1].item()
        for subset in itertools.combinations(range(7), config.num_particles)
    ]
    found = Replayer(values, num_subsets=8000).worth(Policy.of(config, STEPS))["own"][0]
    assert found == pytest.approx(np.mean(finished), abs=4 * np.std(finished) / math.sqrt(8000) + 1e-6)


def test_subsets_begin_alike_for_all_policies(rng):
    replayer = Replayer(rng.standard_normal((2, 30, STEPS)), num_subsets=300)
    few, many = (replayer.worth(Policy(size), num_subsets=100)["own"] for size in (3, 6))
    assert (many > few).all()
    assert replayer.worth(Policy(3))["own"] == pytest.approx(best_of_n(replayer._steps[-1].numpy(), 3), abs=0.2)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_best_of_n_is_the_mean_over_all_subsets(size, rng):
    finished, other = rng.standard_normal((2, 6)), rng.standard_normal((2, 6))
    subsets = list(itertools.combinations(range(6), size))
    for prompt in range(2):
        best = [max(subset, key=lambda seed: finished[prompt, seed]) for subset in subsets]
        assert best_of_n(finished, size)[prompt] == pytest.approx(finished[prompt, best].mean())
        assert best_of_n(finished, size, other)[prompt] == pytest.approx(other[prompt, best].mean())
    assert best_of_weights(6, size).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_price_is_that_of_the_forecast(config):
    prices, course = Prices(step=9.9, reward=1.2), forecast(config, STEPS)
    expected = 9.9 * sum(course.steps) + 1.2 * course.num_scored
    assert prices.of(Policy.of(config, STEPS), STEPS) == pytest.approx(expected)


@pytest.mark.parametrize("cuts", [(), ((2, 2),), ((1, 3), (4, 1)), ((6, 1),)])
@pytest.mark.parametrize("budget", [150.0, 320.0, 1000.0])
def test_the_budget_pays_for_the_starts_and_for_no_more(cuts, budget):
    prices = Prices()
    number = prices.most_starts(cuts, budget, STEPS)
    if number >= 0:
        assert prices.of(Policy(number, cuts), STEPS) <= budget + 1e-6
    assert prices.of(Policy(number + 1, cuts), STEPS) > budget


@pytest.mark.parametrize("num_steps", [2, 7, 20, 28, 50, 1000])
def test_a_policy_is_the_same_search_again(num_steps):
    for step in range(num_steps - 1):
        policy = Policy(6, ((step, 2),))
        assert Policy.of(policy.config(num_steps), num_steps) == policy
    assert Policy(6, ((8, 2),)).config(20) == Pruning(num_particles=6, keep=(2,), at=(0.4,))
    assert Policy(3).config(20) == BestOfN(num_particles=3)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FKSteeringConfig(), "FKSteeringConfig cannot be replayed: it copies particles"),
        (BeamSearch(), "BeamSearch cannot be replayed: it copies particles"),
        (DraftRefine(), "DraftRefine cannot be replayed: it draws other trajectories"),
    ],
)
def test_searches_that_no_record_can_tell_of_are_refused(config, reason):
    with pytest.raises(ValueError, match=reason):
        Policy.of(config, STEPS)


@pytest.mark.parametrize(("step", "reward"), [(0, 1), (-1, 1), (1, -0.1), (float("nan"), 1)])
def test_prices_are_positive(step, reward):
    with pytest.raises(ValueError, match="cost should be"):
        Prices(step=step, reward=reward)
