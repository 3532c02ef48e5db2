"""Evolved caching schedules: the front of a problem whose best schedules are known, resumption, first generation."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest

from fk_reward.benchmarks.cache_evolution import (
    EVALUATIONS,
    Evaluations,
    evolve,
    first_generation,
    front,
    genome_of,
    schedule_of,
    summary,
)
from fk_reward.benchmarks.cache_settings import EvolutionSettings
from fk_reward.planning.cache_costs import CacheCosts

PARTS = (("0", "attn"), ("0", "ff"), ("1", "attn"), ("1", "ff"))
COSTS = CacheCosts(step=110, components=dict(zip(PARTS, (10, 20, 30, 40), strict=True)))
STEPS = 4
WORTH = np.random.default_rng(3).random((STEPS - 1) * len(PARTS))


def worth(schedule):
    """A reward that adds up: each bit has its own value, so that the front is that of a knapsack."""
    return float(WORTH[genome_of(schedule)].sum())


def exact_front():
    """By enumeration of all 4096 schedules."""
    points = []
    for bits in itertools.product([False, True], repeat=len(WORTH)):
        schedule = schedule_of(np.array(bits), PARTS)
        points.append((COSTS.operations(schedule), worth(schedule)))
    best, found = -1.0, []
    for operations, reward in sorted(points, key=lambda point: (point[0], -point[1])):
        if reward > best:
            best = reward
            found.append((operations, reward))
    return found


def volume(points, *, most):
    """Area that a front dominates, below the operations of everything computed."""
    area, reward = 0.0, 0.0
    for operations, value in points:
        area += max(0.0, value - reward) * (most - operations)
        reward = max(reward, value)
    return area


def run(settings, fitness=worth, evaluations=None):
    return list(evolve(fitness, COSTS, num_steps=STEPS, settings=settings, evaluations=evaluations))


SETTINGS = EvolutionSettings(num_generations=30, population_size=24)


def test_evolution_comes_to_the_exact_front():
    """And beats every-k, of which this reward has no reason to think well."""
    pytest.importorskip("pymoo")
    evaluated = run(SETTINGS)[-1]
    most = STEPS * COSTS.step
    exact = volume(exact_front(), most=most)
    found = volume([(e.operations, e.reward) for e in front(evaluated)], most=most)
    plain = [e for e in evaluated if e.schedule.name in {f"every-{k}" for k in range(1, STEPS + 1)}]
    every = volume([(e.operations, e.reward) for e in front(plain)], most=most)
    assert every < 0.75 * exact
    assert 0.97 * exact < found <= exact * (1 + 1e-12)


def test_without_selection_the_same_check_fails():
    """As many random schedules: the saboteur."""
    random = np.random.default_rng(0)
    schedules = [schedule_of(random.random(len(WORTH)) < 0.5, PARTS) for _ in range(24 * 30)]
    points = sorted((COSTS.operations(one), worth(one)) for one in schedules)
    most = STEPS * COSTS.step
    assert volume(points, most=most) < 0.97 * volume(exact_front(), most=most)


def test_a_run_that_is_started_again_draws_nothing_twice(tmp_path):
    pytest.importorskip("pymoo")
    whole = run(SETTINGS)[-1]
    asked = []

    def watched(schedule):
        asked.append(schedule.steps)
        if len(asked) == 60:
            raise KeyboardInterrupt
        return worth(schedule)

    with pytest.raises(KeyboardInterrupt):
        run(SETTINGS, watched, Evaluations.open(tmp_path))
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('{"genome": "00')  # as a kill leaves it
    again = run(SETTINGS, watched, Evaluations.open(tmp_path))[-1]
    assert again == whole
    asked.pop(59)
    assert len(asked) == len(set(asked)) == len(whole)
    assert len((tmp_path / EVALUATIONS).read_text().splitlines()) == len(whole)
    more = EvolutionSettings(num_generations=31, population_size=24)
    assert run(more, worth, Evaluations.open(tmp_path))[-1][: len(whole)] == whole


def test_metrics_say_what_was_measured():
    pytest.importorskip("pymoo")
    evaluated = run(EvolutionSettings(num_generations=1, population_size=8))[-1]
    for one in evaluated:
        expected = {"operations": COSTS.operations(one.schedule), "share": COSTS.share(one.schedule)}
        assert one.schedule.metrics == {**expected, "reward": worth(one.schedule)}
    rows = summary(evaluated, COSTS)
    assert {row["name"] for row in rows} >= {"every-1", "every-2", "every-3", "every-4"}
    assert json.loads(json.dumps(rows)) == rows


def test_the_first_generation_is_of_known_schedules():
    many = first_generation(PARTS, num_steps=8, settings=EvolutionSettings(population_size=200))
    names = [one.name for one in many]
    assert names[:8] == [f"every-{k}" for k in range(1, 9)]
    assert "every-2-from-2" in names and "every-3-ff" in names and names[-1].startswith("flipped-")
    assert len(many) == 200 and all(all(one.steps[0]) for one in many)
    few = first_generation(PARTS, num_steps=8, settings=EvolutionSettings(population_size=4))
    assert [one.name for one in few] == ["every-1", "every-2", "every-3", "every-4"]


def test_genomes_leave_out_the_first_step():
    bits = np.random.default_rng(0).random(12) < 0.5
    schedule = schedule_of(bits, PARTS)
    assert np.array_equal(genome_of(schedule), bits) and all(schedule.steps[0])


def test_a_missing_pymoo_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo", None)
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(ImportError, match=r"fk-reward\[cache\]"):
        run(SETTINGS)


def test_settings():
    with pytest.raises(ValueError, match="population_size should be at least 4"):
        EvolutionSettings(population_size=2)
    with pytest.raises(ValueError, match="num_steps should be at least 2"):
        next(evolve(worth, COSTS, num_steps=1, settings=SETTINGS))
