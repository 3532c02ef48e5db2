"""What is read off whole images: against all subsets, real populations, and rewards that know all or nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from examples.benchmarks.cuts import Cut, Starts, best_after_cut, best_of, best_uses, cuts_within
from fk_reward.search import Pruning, sample_steps


@pytest.mark.parametrize("size", [1, 2, 5])
def test_best_of_n_is_the_mean_over_all_subsets(rng, size):
    scores, counts = rng.standard_normal(5), np.zeros(5)
    subsets = list(itertools.combinations(range(5), size))
    for subset in subsets:
        counts[max(subset, key=lambda place: scores[place])] += 1
    np.testing.assert_allclose(best_of(scores, size), counts / len(subsets))


@pytest.mark.parametrize("keep", [1, 3])
def test_the_image_is_the_one_that_pruning_returns(rng, keep):
    for _ in range(20):
        cut, finished = torch.from_numpy(rng.standard_normal((2, 6)))
        population = Pruning(num_particles=6, keep=(keep,), at=(0.5,)).population()
        population.begin(10)
        left = population.advance(cut, step=5)
        population.finish(finished[left])
        returned = int(left[population.select(1)[0, 0]])
        assert best_after_cut(cut.numpy(), finished.numpy(), number=6, keep=keep)[returned] == 1.0


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("step", [4, 10])
def test_a_cut_is_the_largest_that_is_paid(step, lookahead):
    def price(number, keep):
        return sample_steps(Pruning(num_particles=number, keep=(keep,), at=(step / 20,)), 20, lookahead=lookahead)

    cuts = list(cuts_within(80, 20, step=step, lookahead=lookahead, drawn=20))
    assert cuts
    for cut in cuts:
        assert price(cut.number, cut.keep) <= 80 < price(cut.number + 1, cut.keep), cut


def test_more_starts_than_there_are_is_no_cut():
    assert not [cut for cut in cuts_within(80, 20, step=4, lookahead=1, drawn=6) if cut.number > 6]
    assert Cut(4, 1, 13, 1) in cuts_within(80, 20, step=4, lookahead=1, drawn=13)


@pytest.mark.parametrize("budget", [19, 261])
def test_budgets_without_a_best_of_n_are_refused(budget, rng):
    with pytest.raises(ValueError, match="take one from 20 to 260"):
        best_uses(starts(rng, knows=True), budget=budget, num_steps=20)


def test_best_of_n_spends_the_whole_budget(rng):
    """70 sample steps are three and a half images: between best of three and best of four."""
    gains = {
        budget: best_uses(starts(rng, knows=True), budget=budget, num_steps=20)[0]["gain_plain"]
        for budget in (60, 70, 80)
    }
    assert gains[60] < gains[70] < gains[80]


def starts(rng, *, knows, number=60, texts=30):
    """Rewards of 13 starts of each prompt; predictions at (4, 1) and (8, 3) are the finished rewards, or noise."""
    found = []
    for place in range(number):
        finished = rng.standard_normal(13)
        predicted = {key: finished if knows else rng.standard_normal(13) for key in ((4, 1), (6, 1), (8, 1), (8, 3))}
        found.append(Starts(f"prompt {place % texts}", predicted, finished, (finished > 0).astype(float)))
    return found


def expected_best(number):
    """Mean of the largest of so many standard normal numbers."""
    return np.random.default_rng(1).standard_normal((200_000, number)).max(axis=1).mean()


def test_a_reward_that_knows_early_makes_best_of_more(rng):
    near, far = best_uses(starts(rng, knows=True), budget=80, num_steps=20)
    assert near["cuts"] == [{"step": 4, "lookahead": 1, "number": 13, "keep": 1}]
    assert near["gain"] == pytest.approx(expected_best(13), abs=0.2)
    assert near["gain_plain"] == pytest.approx(expected_best(4), abs=0.1)
    assert near["gain_minus"]["low"] > 0 and near["right_minus"]["low"] >= 0
    assert far["cuts"][0]["number"] < 13, "a look-ahead is paid"


def test_a_reward_that_knows_nothing_gains_nothing(rng):
    """The best of many cuts by chance: chosen and counted on the same prompts it would seem to be level."""
    for row in best_uses(starts(rng, knows=False), budget=80, num_steps=20):
        assert row["gain_minus"]["high"] < 0


def test_what_is_chosen_on_a_prompt_is_not_counted_on_it():
    """Two prompts, each of which is told by another cut: whatever is chosen on one is worthless on the other."""
    finished = np.arange(13.0)
    told, wrong = finished, -finished
    pair = [
        Starts("a", {(4, 1): told, (6, 1): wrong}, finished, finished),
        Starts("b", {(4, 1): wrong, (6, 1): told}, finished, finished),
    ]
    (row,) = best_uses(pair, budget=80, num_steps=20)
    assert {cut["step"] for cut in row["cuts"]} == {4, 6}
    assert row["gain"] < row["gain_plain"]
