"""The points of the scaling table: what each method reached at each budget, and what that cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fk_reward.benchmarks.drawing import BEST, PRICED_BESIDES, UNSTEERED
from fk_reward.benchmarks.image_results import Place, RunResult, read_runs
from fk_reward.benchmarks.image_store import MADE, MANIFEST, has_images, prompt_folders
from fk_reward.benchmarks.statistics import Ends, Outcome, estimate, paired_differences
from fk_reward.benchmarks.task import NOBODY
from fk_reward.planning.prices import PRICES
from fk_reward.rewards.noise_bands import name_without_bands
from fk_reward.sampling.trace import Cost

PLAIN = "plain"
"""Folder of the images that nothing steered or selected: what all qualities are measured from."""

_COUNTS = {"model_rows": "denoiser_rows", **{name: name for name in ("decodes", "reward_calls", "seconds")}}
"""What the note of a prompt calls the parts of a `Cost`."""

_FOLLOWS_GRADIENTS = "fk-gradient"

Outcomes = Mapping[Place, Outcome]


@dataclass(frozen=True, eq=False)
class ScalingRun:
    """A judged run at a budget.

    Attributes:
        result: its images, verdicts and scores.
        budget: sample steps of an image that it was given; None of plain images.
        cost: of an image.
    """

    result: RunResult
    budget: int | None
    cost: Cost

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the run, as its manifest has them."""
        manifest = self.result.manifest
        if manifest is None:
            raise ValueError(f"{self.result.root} has no manifest: it is no run of fk-reward scaling.")
        settings: Mapping[str, Any] = manifest["settings"]
        return settings

    @property
    def num_steps(self) -> int:
        """Scheduler steps of an image."""
        return int(self.settings["num_steps"])


@dataclass(frozen=True, eq=False)
class Scale:
    """The unit in which a reward is reported: its standard deviation within a prompt, measured from its mean there.

    Attributes:
        means: prompt's index -> mean of the plain images.
        spread: standard deviation of plain images of one prompt, pooled over prompts.
    """

    means: Mapping[int, float]
    spread: float

    @classmethod
    def of(cls, plain: Outcomes) -> Scale:
        """From the scores of plain images, of which each prompt has several.

        Example:
            >>> cow = {(0, sample): Outcome(float(sample), "a cow", "") for sample in range(3)}
            >>> Scale.of(cow).spread, Scale.of(cow).means
            (1.0, {0: 1.0})
        """
        groups: dict[int, list[float]] = {}
        for (index, _), outcome in plain.items():
            groups.setdefault(index, []).append(outcome.value)
        variance = float(np.mean([np.var(group, ddof=1) for group in groups.values()]))
        return cls({index: float(np.mean(group)) for index, group in groups.items()}, variance**0.5)

    def of_gains(self, scores: Outcomes) -> dict[Place, Outcome]:
        """Scores above the prompt's mean, in standard deviations; nothing where plain images do not differ."""
        if self.spread == 0:
            return {}
        return {
            place: outcome._replace(value=(outcome.value - self.means[place[0]]) / self.spread)
            for place, outcome in scores.items()
        }


def _own(run: ScalingRun) -> str:
    """The reward that judged the finished images of a search: with noise bands or without, it is the same."""
    return name_without_bands(run.result.reward or "")


def run_folders(out: Path) -> list[Path]:
    """The folders of runs in a folder of this command; those in which nothing was drawn are left out.

    Raises:
        FileNotFoundError: there is none.
    """
    folders = [path.parent.parent for path in sorted(out.glob(f"*/*/{MANIFEST}")) if has_images(path.parent)]
    if not folders:
        raise FileNotFoundError(f"{out} holds no runs of fk-reward scaling: generate them first.")
    return list(dict.fromkeys(folders))


def read_scaling_runs(out: Path) -> list[ScalingRun]:
    """All runs, plain images first, then by budget, reward and method.

    Raises:
        FileNotFoundError: no runs, or no plain images.
        ValueError: images that are not judged, or verdicts of different judges.
    """
    runs = [_read(result, folder.name) for folder in run_folders(out) for result in read_runs(folder)]
    judges = {str(sorted(run.result.judge.items())) for run in runs}
    if len(judges) > 1:
        raise ValueError(f"The runs in {out} were judged by different judges: {' and '.join(sorted(judges))}.")
    if not any(run.budget is None for run in runs):
        raise FileNotFoundError(f"{out / PLAIN} holds no plain images, from which rewards are measured.")
    return sorted(runs, key=_place)


def _place(run: ScalingRun) -> tuple[Any, ...]:
    return (run.budget or 0, run.result.reward or "", run.result.method != BEST, run.num_steps, run.result.method)


def _read(result: RunResult, folder: str) -> ScalingRun:
    budget = None if folder == PLAIN else int(folder.split("-")[1])
    notes = [folder.read_note(MADE) or {} for folder in prompt_folders(result.root)]

    def total(name: str) -> float:
        return sum(note.get(name, 0) for note in notes) / len(result.images)

    counts: dict[str, Any] = {ours: total(theirs) for theirs, ours in _COUNTS.items()}
    counts |= {name: total(name) for name in PRICED_BESIDES}
    if result.method == _FOLLOWS_GRADIENTS and not all("gradients" in note for note in notes):
        counts["gradients"] = None  # drawn before they were counted: of no known price
    return ScalingRun(result, budget, Cost(**counts))


class ScalingPoints:
    """The table of all runs, as JSON rows.

    Args:
        runs: of `read_scaling_runs`.
    """

    def __init__(self, runs: Sequence[ScalingRun]) -> None:
        self.runs = list(runs)
        self.plain = next(run for run in runs if run.budget is None)
        self.judged = self.plain.result.judge.get("judge") != NOBODY

    @cached_property
    def rewards(self) -> dict[str, Scale]:
        """Rewards that have scored every image -> their scales; those first that steer."""
        names = dict.fromkeys(_own(run) for run in self.runs if run.result.reward is not None)
        names |= dict.fromkeys(name for image in self.plain.result.images for name in image.scores)
        known = [name for name in names if all(run.result.scores(name) for run in self.runs)]
        return {name: Scale.of(self.plain.result.scores(name)) for name in known}

    def rows(self) -> list[dict[str, Any]]:
        """One for each run.

        `method`, `reward`, `budget`, `num_steps`, `search` (its settings); `own` and `heldout` (name -> estimate, of
        all rewards that did not steer), in standard deviations within a prompt above plain images; `judge`, the
        accuracy; `own_difference`, `heldout_difference` (name -> estimate) and `judge_difference` to best of N of the
        same budget and number of steps, and `judge_difference_best` to that of the number of steps at which the judge
        likes best of N most (`best_steps`); `own_difference_plain` and `judge_difference_plain`, of a reward with noise
        bands to the same run without; `price_difference`, by price list `own` and `judge` against best of N of the same
        price, between two of its budgets (`between_prices`); `cost` of an image, `prices` of it in plain images, by
        price list; `diversity` and `num_ancestors` of a population. Estimates have `estimate`, `low` and `high`, a 95 %
        interval clustered by the text of the prompt.
        """
        return [self._row(run) for run in self.runs]

    def _row(self, run: ScalingRun) -> dict[str, Any]:
        result, own = run.result, _own(run)
        gains = {name: estimate(found.values()) for name in self.rewards if (found := self._gains(run, name))}
        same, best = self._baseline(run, run.num_steps), self._best_baseline(run)
        plain = self._without_bands(run)
        return {
            "method": result.method,
            "reward": result.reward,
            "budget": run.budget,
            "num_steps": run.num_steps,
            "search": run.settings["search"],
            "own": gains.get(own),
            "heldout": {name: gain for name, gain in gains.items() if name != own},
            "judge": estimate(self._verdicts(run).values()) if self.judged else None,
            "own_difference": self._difference(run, same, own),
            "heldout_difference": {name: self._difference(run, same, name) for name in gains if name != own},
            "judge_difference": self._difference(run, same, None),
            "judge_difference_best": self._difference(run, best, None),
            "own_difference_plain": self._difference(run, plain, own),
            "judge_difference_plain": self._difference(run, plain, None),
            "best_steps": None if best is None else best.num_steps,
            "diversity": result.population.get("distance"),
            "num_ancestors": result.population.get("num_ancestors"),
            "cost": dict(vars(run.cost)),
            "prices": self._prices(run),
            "price_difference": {prices: self._at_price(run, prices) for prices in PRICES},
        }

    def _at_price(self, run: ScalingRun, prices: str) -> dict[str, Ends | None]:
        """Differences to best of N of the same price and steps; None where its budgets do not reach so far."""
        price = self._prices(run)[prices]
        rewards: dict[str, str | None] = {"own": _own(run), "judge": None}
        if price is not None and run.result.method not in (BEST, UNSTEERED):
            for (lower, before), (higher, after) in itertools.pairwise(self._curve(run, prices)):
                if lower <= price <= higher:
                    # two budgets can buy the same N
                    share = math.log(price / lower) / math.log(higher / lower) if higher > lower else 0.0
                    return {kind: self._between(run, (before, after), share, name) for kind, name in rewards.items()}
        return dict.fromkeys(rewards)

    def _between(
        self, run: ScalingRun, ends: tuple[ScalingRun, ScalingRun], share: float, reward: str | None
    ) -> Ends | None:
        if not self._knows(reward):
            return None
        first, second = (self._values(end, reward) for end in ends)
        baseline = between_prices(first, second, share)
        return estimate(paired_differences(self._values(run, reward), baseline))

    def _knows(self, reward: str | None) -> bool:
        """Whether every image has a score of the reward; a verdict where no reward is named."""
        return self.judged if reward is None else reward in self.rewards

    def _curve(self, run: ScalingRun, prices: str) -> list[tuple[float, ScalingRun]]:
        """Best of N by the same reward with as many steps, by ascending price."""
        mine = (run.num_steps, _own(run))
        same = [one for one in self.runs if one.result.method == BEST and (one.num_steps, _own(one)) == mine]
        priced = [(price, one) for one in same if (price := self._prices(one)[prices]) is not None]
        return sorted(priced, key=lambda point: point[0])

    def _values(self, run: ScalingRun, reward: str | None) -> dict[Place, Outcome]:
        """A reward's gains; the judge's verdicts where no reward is named."""
        return self._verdicts(run) if reward is None else self._gains(run, reward)

    def _gains(self, run: ScalingRun, name: str) -> dict[Place, Outcome]:
        return self.rewards[name].of_gains(run.result.scores(name))

    @staticmethod
    def _verdicts(run: ScalingRun) -> dict[Place, Outcome]:
        return run.result.correctness()

    def _baselines(self, run: ScalingRun) -> list[ScalingRun]:
        """Best of N by the same reward, of the same budget."""
        mine = (run.budget, _own(run))
        return [one for one in self.runs if one.result.method == BEST and (one.budget, _own(one)) == mine]

    def _without_bands(self, run: ScalingRun) -> ScalingRun | None:
        """The same search of the same budget by the reward without its noise bands."""
        if run.result.reward in (None, _own(run)):
            return None
        mine = (run.budget, run.num_steps, run.result.method, _own(run))
        same = (one for one in self.runs if (one.budget, one.num_steps, one.result.method, one.result.reward) == mine)
        return next(same, None)

    def _baseline(self, run: ScalingRun, num_steps: int) -> ScalingRun | None:
        found = [one for one in self._baselines(run) if one.num_steps == num_steps and one is not run]
        return found[0] if found else None

    def _best_baseline(self, run: ScalingRun) -> ScalingRun | None:
        """Where the judge likes best of N most: chosen on these very prompts, which favours the baseline."""
        found = self._baselines(run) if self.judged and run.result.method not in (BEST, UNSTEERED) else []
        return max(found, key=lambda one: estimate(self._verdicts(one).values())["estimate"] or 0.0, default=None)

    def _difference(self, run: ScalingRun, baseline: ScalingRun | None, reward: str | None) -> Ends | None:
        """Of a reward's gains; of the judge's verdicts where no reward is named."""
        if baseline is None or not self._knows(reward):
            return None
        pairs = paired_differences(self._values(run, reward), self._values(baseline, reward))
        return estimate(pairs) if pairs else None

    def _prices(self, run: ScalingRun) -> dict[str, float | None]:
        """What an image cost in each price list, in scored plain images; None where the reward has no price."""
        prices: dict[str, float | None] = {}
        reward = run.result.reward or "none"
        for name, prices_of in PRICES.items():
            try:
                unit = prices_of.image(self.plain.num_steps, reward=reward)
                prices[name] = prices_of.price(run.cost, reward=reward) / unit
            except ValueError:  # a reward of the user's own, or what was not counted
                prices[name] = None
        return prices


def between_prices(first: Outcomes, second: Outcomes, share: float) -> dict[Place, Outcome]:
    """What best of N is worth at a price between two of its budgets: a straight line on the logarithm of the price.

    The best of N gains about as much with each doubling, so that a line on the price itself would make it too weak.

    Args:
        first: of the cheaper budget.
        second: of the other one.
        share: of the way between them, in [0, 1].

    Example:
        >>> cow, dog = (Outcome(value, "a cow", "") for value in (1.0, 3.0))
        >>> between_prices({(0, 0): cow}, {(0, 0): dog}, 0.25)[0, 0].value
        1.5
    """
    return {
        place: outcome._replace(value=(1.0 - share) * outcome.value + share * second[place].value)
        for place, outcome in first.items()
        if place in second
    }


def best_of_n_curves(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    """The rows of best of N by reward and number of steps, by budget."""
    curves: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in rows if row["method"] == BEST), key=lambda row: row["budget"]):
        curves.setdefault((row["reward"], row["num_steps"]), []).append(row)
    return curves


def without_plain(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of searches."""
    return [row for row in rows if row["method"] != UNSTEERED]
