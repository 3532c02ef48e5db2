"""Figures of the shapes benchmark: accuracy and forbidden signs with intervals, and differences of paired results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from fk_reward.benchmarks.shapes_runs import BEST, STEERED, UNSTEERED
from fk_reward.benchmarks.statistics import clustered_bootstrap, clustered_ratio
from fk_reward.shapes import TASKS

Record: TypeAlias = Mapping[str, Any]
Pairs: TypeAlias = Sequence[tuple[Record, Record]]
Results: TypeAlias = dict[tuple[int, int], Record]
"""Results of one method, by prompt index and seed."""

Key = TypeVar("Key")

AVERAGES = ("share_correct", "distance", "reward_spread", "num_ancestors", "model_rows", "decoded", "seconds")


class Method(NamedTuple):
    """How a picture was made and chosen."""

    name: str
    reward: str | None
    num_particles: int

    def __str__(self) -> str:
        """In words."""
        return self.name if self.name == UNSTEERED else f"{self.name} of {self.num_particles} by {self.reward}"


ONE = Method(UNSTEERED, None, 1)


def summarize(records: Sequence[Record], rewards: Sequence[str]) -> dict[str, Any]:
    """Rows of the tables, as JSON.

    Args:
        records: of `run_population`.
        rewards: names of the rewards in the order of the tables; the others are compared with the first.

    Returns:
        `methods`: one row for each method, reward and K; `differences`: the first less the second method, on the
        prompts and seeds that both have.

    Raises:
        ValueError: without results.
    """
    results = results_by_method(records, rewards)
    if not results:
        raise ValueError("There are no results to report.")
    unsteered = results.get(ONE, {})
    return {
        "methods": [method_row(method, ours, unsteered) for method, ours in results.items()],
        "differences": [difference_row(*names, results) for names in comparisons(results, rewards)],
    }


def comparisons(methods: Mapping[Method, Any], rewards: Sequence[str]) -> list[tuple[Method, Method]]:
    """Which methods are compared, of those that there are.

    For each K, first: steered with best of K by the same reward; the other rewards with the first, both ways of
    choosing crossed; then all with one picture.
    """
    sizes = sorted({method.num_particles for method in methods})
    pairs = [(Method(STEERED, name, size), Method(BEST, name, size)) for size in sizes for name in rewards]
    for size in sizes:
        for name in rewards[1:]:
            other, first = ([Method(kind, reward, size) for kind in (STEERED, BEST)] for reward in (name, rewards[0]))
            pairs += [(other[0], first[0]), (other[1], first[1]), (other[0], first[1]), (first[0], other[1])]
    pairs += [(Method(kind, name, size), ONE) for kind in (STEERED, BEST) for size in sizes for name in rewards]
    return [pair for pair in pairs if pair[0] in methods and pair[1] in methods]


def results_by_method(records: Sequence[Record], rewards: Sequence[str]) -> dict[Method, Results]:
    """Results by method: one picture, then for each K best and steered by each reward."""
    methods: dict[Method, Results] = {}
    for record in sorted(records, key=lambda r: (r["prompt_index"], r["seed"])):
        method = Method(record["method"], record["reward"], record["num_particles"])
        methods.setdefault(method, {})[record["prompt_index"], record["seed"]] = record
    order = [ONE]
    for size in sorted({method.num_particles for method in methods}):
        order += [Method(kind, name, size) for name in rewards for kind in (BEST, STEERED)]
    return {method: methods[method] for method in order if method in methods}


def method_row(method: Method, results: Results, unsteered: Results) -> dict[str, Any]:
    """Figures of one method: accuracy with intervals, scores, averages, forbidden signs.

    Args:
        method: the method.
        results: its results, at least one.
        unsteered: those of one picture, with which the rate of forbidden signs is compared; may be empty.
    """
    records = list(results.values())
    row: dict[str, Any] = {"method": method.name, "reward": method.reward, "num_particles": method.num_particles}
    row |= {"num_results": len(records)} | _by_task(records, [float(record["correct"]) for record in records])
    row["scores"] = {name: _mean([record["scores"][name] for record in records]) for name in records[0]["scores"]}
    row |= {name: _mean([record[name] for record in records]) for name in AVERAGES}
    return row | _forbidden_cells(records, paired(results, unsteered))


def difference_row(first: Key, second: Key, results: Mapping[Key, Results]) -> dict[str, Any]:
    """The first less the second, on the prompts and seeds that both have; None in place of intervals without any.

    Args:
        first: a key of `results`, which is shown by its `str`.
        second: the same.
        results: of each method.
    """
    pairs = paired(results[first], results[second])
    row: dict[str, Any] = {"first": str(first), "second": str(second), "num_results": len(pairs)}
    row |= _by_task([ours for ours, _ in pairs], _differences(pairs, "correct"))
    judged = _judged(pairs)
    row["forbidden"] = _interval([ours for ours, _ in judged], _differences(judged, "forbidden"))
    return row


def paired(first: Results, second: Results) -> list[tuple[Record, Record]]:
    """The results of two methods on the prompts and seeds that both have."""
    return [(first[key], second[key]) for key in first if key in second]


def _differences(pairs: Pairs, name: str) -> list[float]:
    return [float(ours[name]) - float(theirs[name]) for ours, theirs in pairs]


def _judged(pairs: Pairs) -> Pairs:
    """Those whose prompt does not ask for the forbidden sign."""
    return [pair for pair in pairs if pair[0]["forbidden"] is not None]


def _forbidden_cells(records: Sequence[Record], with_unsteered: Pairs) -> dict[str, Any]:
    """Rate of forbidden signs in the chosen pictures and among all K, and its ratio to that of one picture."""
    ours = [record for record in records if record["forbidden"] is not None]
    return {
        "num_judged": len(ours),
        "forbidden": _interval(ours, [float(record["forbidden"]) for record in ours]),
        "share_forbidden": _mean([record["share_forbidden"] for record in ours]),
        "forbidden_ratio": _forbidden_ratio(_judged(with_unsteered)),
    }


def _forbidden_ratio(pairs: Pairs) -> dict[str, float] | None:
    """Rate of the first over that of the second; None where the second has too few to say."""
    if not pairs:
        return None
    ours, theirs = ([float(pair[side]["forbidden"]) for pair in pairs] for side in (0, 1))
    prompts, tasks = [pair[0]["prompt"] for pair in pairs], [pair[0]["task"] for pair in pairs]
    ratio = clustered_ratio(ours, theirs, prompts, strata=tasks)
    return None if ratio is None else vars(ratio)


def _by_task(records: Sequence[Record], values: Sequence[float]) -> dict[str, dict[str, float] | None]:
    """Interval for each task that there is and overall, which is the mean of the tasks."""
    intervals = {"overall": _interval(records, values)}
    for task in TASKS:
        inside = [i for i, record in enumerate(records) if record["task"] == task]
        if inside:
            intervals[task] = _interval([records[i] for i in inside], [values[i] for i in inside])
    return intervals


def _interval(records: Sequence[Record], values: Sequence[float]) -> dict[str, float] | None:
    """Clustered by distinct prompt, the tasks equally weighted; None without values."""
    if not records:
        return None
    prompts, tasks = [record["prompt"] for record in records], [record["task"] for record in records]
    return vars(clustered_bootstrap(values, prompts, strata=tasks))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
