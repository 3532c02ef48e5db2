"""Budgets: never overspent, nothing larger to be had, and nothing bought is refused."""

from dataclasses import dataclass, replace

import pytest

from fk_reward.search import SEARCHES, BeamSearch, BestOfN, DraftRefine, FKSteeringConfig, Pruning, load_search
from fk_reward.search.budget import check_typed_sizes, fit_budget, largest_within, resized, sample_steps

STEPS = 20


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("budget", [160, 333, 1000])
def test_no_search_costs_more_than_its_budget_and_most_of_it_is_spent(name, budget):
    fitted = fit_budget(load_search(name), budget, STEPS)
    spent = sample_steps(fitted, STEPS)
    assert budget - spent < sample_steps(fit_budget(load_search(name), 160, STEPS), STEPS)
    assert spent <= budget


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BestOfN(), BestOfN(num_particles=10)),
        (FKSteeringConfig(), FKSteeringConfig(num_particles=10)),
        (DraftRefine(num_particles=8, draft_steps=5, num_refined=2), 20),
        (Pruning(num_particles=12, keep=(7, 4), at=(0.4, 0.55)), 14),
        (BeamSearch(num_particles=1, num_proposals=4), 3),
    ],
)
def test_what_a_budget_of_200_buys(config, expected):
    fitted = fit_budget(config, 200, STEPS)
    if not isinstance(expected, int):
        assert fitted == expected
    else:
        # by hand: every size one by one
        sizes = [size for size in range(1, 60) if sample_steps(resized(config, size), STEPS) <= 200]
        assert fitted.num_particles == max(sizes) == expected


def test_proportions_are_kept():
    pruning = fit_budget(Pruning(num_particles=4, keep=(3, 1), at=(0.25, 0.5)), 2000, STEPS)
    assert pruning.keep == pytest.approx((0.75 * pruning.num_particles, 0.25 * pruning.num_particles), abs=0.5)
    drafts = fit_budget(DraftRefine(num_particles=10, draft_steps=4, num_refined=5), 1400, STEPS)
    assert (drafts.num_particles, drafts.num_refined) == (100, 50)
    funnel = fit_budget(FKSteeringConfig(num_particles=8, final_particles=2), 1000, STEPS)
    assert funnel.final_particles == pytest.approx(funnel.num_particles / 4, abs=0.5)
    assert resized(FKSteeringConfig(), 3).final_particles is None


@pytest.mark.parametrize("name", SEARCHES)
def test_a_budget_that_buys_nothing_is_refused_with_one_that_does(name):
    with pytest.raises(
        ValueError, match=r"budget=9 .* buys nothing: .* needs at least (\d+), with 20 inference"
    ) as told:
        fit_budget(load_search(name), 9, STEPS)
    least = int(str(told.value).split("at least ")[1].split(",")[0])
    assert sample_steps(fit_budget(load_search(name), least, STEPS), STEPS) <= least
    with pytest.raises(ValueError, match="buys nothing"):
        fit_budget(load_search(name), least - 1, STEPS)


def test_a_scheduler_that_makes_two_steps_of_one_costs_twice():
    double = {"length": lambda number: 2 * number}
    assert fit_budget(BestOfN(), 200, STEPS, **double).num_particles == 5
    assert sample_steps(DraftRefine(num_particles=3, draft_steps=4, num_refined=1), STEPS, **double) == 2 * (12 + 20)


@pytest.mark.parametrize("wrong", [0, -5])
def test_budgets_are_positive(wrong):
    with pytest.raises(ValueError, match="budget should be at least 1"):
        fit_budget(BestOfN(), wrong, STEPS)
    with pytest.raises(TypeError, match="budget should be an int"):
        fit_budget(BestOfN(), 20.0, STEPS)


@dataclass(frozen=True, kw_only=True)
class Overspending(BestOfN):
    """A saboteur: a search of its own that takes more than it was given."""

    def within_budget(self, price, budget):
        return replace(self, num_particles=1 + budget // STEPS)


def test_a_search_that_would_overspend_is_refused():
    with pytest.raises(ValueError, match="no size of Overspending"):
        fit_budget(Overspending(), 200, STEPS)


def test_sizes_that_a_search_does_not_have_are_passed_over():
    def make(number):
        if number < 4:
            raise ValueError("too few")
        return BestOfN(num_particles=number)

    assert largest_within(make, lambda one: one.num_particles, 6).num_particles == 6
    assert largest_within(make, lambda one: 100, 6) is None
    assert largest_within(make, lambda one: one.num_particles, 2) is None


def test_the_only_size_and_a_budget_exclude_each_other():
    with pytest.raises(ValueError, match="leave one of them out"):
        check_typed_sizes(BestOfN(), {"num_particles": 4}, budget="budget=80")
    check_typed_sizes(BestOfN(), {}, budget="budget=80")
    check_typed_sizes(Pruning(), {"num_particles": 12, "keep": (6,)}, budget="budget=80")  # proportions
