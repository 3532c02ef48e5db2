"""Measures judges of noise bands, as `train_bands.py` has trained them, on held-out prompts.

    python examples/shapes/measure_bands.py accuracy     # by level: plain, banded and the others, three seeds
    python examples/shapes/measure_bands.py bound        # what a perfect judge would know: redraws from the same state

Both go on with what `train_bands.py` has recorded and trained, or with as much of it as there is.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cyclopts
import numpy as np
import torch
from train_adapters import is_finished
from train_bands import BANDS, REWARD, SOLVERS, TEACHERS, Size, Sized, models_of, recorded, size_of, trained

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.noise_accuracy import (
    GAINS,
    LevelScores,
    PromptAccuracy,
    accuracy_row,
    accuracy_rows,
    judges_of,
    scored_predictions,
    write_accuracy,
)
from fk_reward.benchmarks.prediction_recording import levels_of_run
from fk_reward.benchmarks.recording import EachReward
from fk_reward.benchmarks.report import RANGE, Column, Table, show_report, show_table, write_json
from fk_reward.benchmarks.runner import watch
from fk_reward.durable_files import append_lines, read_json_lines
from fk_reward.pipelines.loading import call_arguments
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.rewards import Reward, load_reward
from fk_reward.search import PlainPopulation
from fk_reward.terminal import open_console
from fk_reward.training.predictions import PredictionRecords, nearest_steps
from fk_reward.value_checks import parse_shard

app = cyclopts.App()


@app.command
def accuracy(
    root: Path = Path("runs/bands"),
    smoke: bool = False,
    models: list[Path] | None = None,
    size: Sized = None,
) -> None:
    """Held-out prompts: pairs and rank correlations by level, of the plain adapter, the bands, and the others.

    Args:
        root: Folder of the recordings and of what is trained; what is not trained is left out.
        smoke: As it was trained.
        models: Folders of models in place of those of the package with the same names.
        size: Kinds, seeds and solvers.
    """
    size = size_of(size, smoke)
    with models_of(models):
        rewards = _trained_rewards(root, size)
    for solver in size.solvers:
        records = PredictionRecords.load(recorded(root, solver, "heldout"))
        found: list[LevelScores] = []
        watch(scored_predictions(records, rewards, found=found, judges=_plain_once), console=open_console())
        rows = accuracy_rows(records, [_named(one) for one in found])
        tables = [Table(*table) for table in tables_over_seeds(found, records)]
        show_report(write_accuracy(root / "measured" / solver, records, rows, more=tables), "Results")


def _trained_rewards(root: Path, size: Size) -> dict[str, Reward]:
    """The plain adapter, and of each seed the bands together, and each of the others, as far as they are trained."""
    groups = {"bands": [kind for kind in size.kinds if kind in BANDS]}
    groups |= {kind: [kind] for kind in size.kinds if kind not in BANDS}
    rewards = {REWARD: load_reward(REWARD)}
    for seed, (name, kinds) in itertools.product(size.seeds, groups.items()):
        folders = [trained(root, kind, seed) for kind in kinds]
        if folders := list(filter(is_finished, folders)):
            rewards[f"{name}, seed {seed}"] = load_reward(REWARD, bands=folders)
    if len(rewards) == 1:
        raise FileNotFoundError(f"{root / 'adapters'} holds no trained judge of {', '.join(groups)}: train them first.")
    return rewards


def _plain_once(name: str, reward: Reward, level: float) -> dict[str, Reward]:
    """The plain adapter judges under its own name alone: it would say the same under all the others."""
    return {judge: one for judge, one in judges_of(name, reward, level).items() if name == REWARD or judge != REWARD}


def _named(one: LevelScores) -> LevelScores:
    """The judge with the run that it is of."""
    return one if one.reward == REWARD else replace(one, reward=REWARD, judge=f"{one.judge} ({one.reward})")


SEED_COLUMNS = (
    Column("level", "noise level", "{:.3f}"),
    Column("judge"),
    Column("reference", "finished by"),
    Column("pairs", "pairs in order [95 %]", RANGE, ("pairs_low", "pairs_high")),
    Column("deviation", "sd over seeds", "{:.3f}"),
    Column("rank", "rank correlation [95 %]", RANGE, ("rank_low", "rank_high")),
    Column("num_seeds", "seeds", "{:d}"),
)
DIFFERENCE_COLUMNS = (Column("level", "noise level", "{:.3f}"), Column("judge"), Column("reference", "finished by"),
                      *GAINS)  # fmt: skip


def tables_over_seeds(
    found: Sequence[LevelScores], records: PredictionRecords
) -> Iterator[tuple[str, tuple[Column, ...], list[dict[str, Any]]]]:
    """Means over the seeds of the trainings by level, and the differences of all kinds that judge a level.

    Args:
        found: scores by rewards called "KIND, seed N", and by the plain adapter.
        records: what was scored.
    """
    runs: dict[tuple[float, str], list[np.ndarray]] = {}
    for one in found:
        runs.setdefault((one.level, one.reward.partition(",")[0]), []).append(one.scores)
    means, differences = [], []
    for reference, (level, group) in itertools.product(records.scores, _by_level(runs)):
        figures = {kind: PromptAccuracy.of(scores, records.of(reference), records.prompts)
                   for kind, scores in group.items()}  # fmt: skip
        about = {"level": level, "reference": reference}
        for kind, found_one in figures.items():
            deviation = statistics.stdev(found_one.runs) if len(found_one.runs) > 1 else None
            means.append({**about, "judge": kind, **found_one.row(), "deviation": deviation,
                          "num_seeds": len(group[kind])})  # fmt: skip
        for second, first in itertools.combinations(figures, 2):
            gains = figures[first].gains(figures[second])
            differences.append({**about, "judge": f"{first} - {second}", **gains})
    yield "Means over the seeds of the trainings", SEED_COLUMNS, means
    yield "Differences, paired by prompt", DIFFERENCE_COLUMNS, differences


def _by_level(runs: Mapping[tuple[float, str], Any]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Noise levels, descending, each with the kinds that judge it, the plain adapter first."""
    for level in sorted({level for level, _ in runs}, reverse=True):
        yield level, {kind: scores for (other, kind), scores in runs.items() if other == level}


@dataclass(frozen=True, kw_only=True)
class Redraw:
    """Copies every particle before one step and lets the copies go on by themselves.

    Attributes:
        num_particles: K, states.
        num_redraws: R, copies of each.
        step: before which they part.
    """

    default_eta: ClassVar[float | None] = 1.0

    num_particles: int
    num_redraws: int
    step: int

    def population(
        self,
        num_groups: int = 1,
        generators: Any = None,  # noqa: ARG002 (nothing is drawn)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> PlainPopulation:
        """The particles of one call."""
        return _Redrawn(self, num_groups)


class _Redrawn(PlainPopulation):
    copies = True

    def __init__(self, config: Redraw, num_groups: int) -> None:
        total = config.num_particles * config.num_redraws
        super().__init__(config.num_particles, num_groups, max_particles=total)
        self.config = config

    def sizes(self, num_steps: int) -> Mapping[int, int]:  # noqa: ARG002
        return {self.config.step: self.max_particles}

    def advance(self, rewards: torch.Tensor, *, step: int, log_ratio: Any = None) -> torch.Tensor:
        self.refuse_ratio(log_ratio)
        self.grouped(rewards, step=step)
        copies = torch.arange(self.num_particles).repeat_interleave(self.config.num_redraws)
        return self.moved(copies.expand(self.num_groups, -1))


def bound_row(rewards: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    """How well the mean of other redraws foretells one redraw: what no judge of the state can surpass, from below.

    The best that can be known of a finished score is its mean given the state. R - 1 redraws estimate this mean with
    noise, so that the bound itself lies a little higher.

    Args:
        rewards: (P, K, R), finished scores of R redraws of each state.
        prompts: P texts.
    """
    num_redraws = rewards.shape[2]
    others = (rewards.sum(axis=2, keepdims=True) - rewards) / (num_redraws - 1)
    # each redraw in turn is what is to be foretold; all of them are of one prompt
    flat = [np.moveaxis(table, 2, 1).reshape(-1, rewards.shape[1]) for table in (others, rewards)]
    return accuracy_row(*flat, [prompt for prompt in prompts for _ in range(num_redraws)])


BOUND_COLUMNS = (
    Column("level", "noise level", "{:.3f}"),
    Column("reward", "finished by"),
    Column("pairs", "pairs in order [95 %]", RANGE, ("pairs_low", "pairs_high")),
    Column("rank", "rank correlation [95 %]", RANGE, ("rank_low", "rank_high")),
)


@app.command
def bound(  # noqa: PLR0913, PLR0917 (a command's options)
    root: Path = Path("runs/bands"),
    smoke: bool = False,
    models: list[Path] | None = None,
    size: Sized = None,
    shard: str = "0/1",
) -> None:
    """Redraws held-out states with the stochastic solver: what remains to be drawn bounds every judge.

    Args:
        root: Folder of the recordings and of what is trained.
        smoke: As the other stages.
        models: Folders of models in place of those of the package with the same names.
        size: Prompts, states, redraws and levels.
        shard: i/n leaves to this process every n-th prompt; the one that finishes last shows the table.
    """
    size, (index, count) = size_of(size, smoke), parse_shard(shard)
    with models_of(models):
        pipe, arguments = _redrawing(smoke)
    prompts, folder = size.prompts("heldout"), root / "measured"
    steps = nearest_steps(levels_of_run(pipe, prompts[0], arguments), size.levels)
    known = _read_redraws(folder, size)
    folder.mkdir(parents=True, exist_ok=True)
    for (step, level), place in itertools.product(steps.items(), range(index, len(prompts), count)):
        if (level, place) not in known:
            rewards = _redrawn(pipe, size, step, place, prompts[place], arguments)
            row = _about(size) | {"level": level, "place": place, "rewards": rewards}
            append_lines(folder / f"redraws-{index}-of-{count}.jsonl", [json.dumps(row)])
    _show_bound(folder, size, tuple(steps.values()), prompts)


def _show_bound(folder: Path, size: Size, levels: Sequence[float], prompts: Sequence[str]) -> None:
    """Write and show the table, where all is drawn."""
    known = _read_redraws(folder, size)
    asked = list(itertools.product(levels, range(len(prompts))))
    if missing := [one for one in asked if one not in known]:
        print(f"{len(asked) - len(missing)} of {len(asked)} are drawn: the other processes have the rest.")
        return
    rows = [
        {"level": level, "reward": name}
        | bound_row(np.stack([known[level, place][name] for place in range(len(prompts))]), prompts)
        for level in levels
        for name in TEACHERS
    ]
    write_json(folder / "bound.json", rows)
    show_table(f"{len(prompts)} held-out prompts, {size.num_redraws} redraws of each state", BOUND_COLUMNS, rows)


def _redrawing(smoke: bool) -> tuple[FKSteeringPipeline, dict[str, Any]]:
    """The pipeline with all teachers, and the arguments of its calls."""
    teachers = EachReward({name: load_reward(name) for name in TEACHERS})
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=teachers)
    pipe.set_progress_bar_config(disable=True)
    pipe.solver = resolve_solver(SOLVERS["stochastic"]["solver"])
    return pipe, call_arguments(pipe, "shapes-sd", steps=8 if smoke else None, guidance_scale=None)


def _redrawn(
    pipe: FKSteeringPipeline, size: Size, step: int, place: int, prompt: str, arguments: Mapping[str, Any]
) -> dict[str, list[list[float]]]:
    """Teacher -> (K, R) finished scores, of R redraws of K states of a prompt."""
    search = Redraw(num_particles=size.num_heldout_seeds, num_redraws=size.num_redraws, step=step)
    # a generator for all, which copies share: each draws numbers of its own from it
    (generator,) = particle_generators(8000, [place], 1)
    trace = pipe(prompt, generator=generator, search=search, **arguments).trace
    parts = trace.steps[-1].reward_parts
    return {name: part[0].double().view(-1, size.num_redraws).tolist() for name, part in parts.items()}


def _about(size: Size) -> dict[str, int]:
    return {"num_states": size.num_heldout_seeds, "num_redraws": size.num_redraws}


def _read_redraws(folder: Path, size: Size) -> dict[tuple[float, int], dict[str, np.ndarray]]:
    """What was redrawn at this size, of all processes: (level, prompt's place) -> teacher -> (K, R)."""
    lines = (line for path in sorted(folder.glob("redraws-*.jsonl")) for _, line in read_json_lines(path))
    return {
        (line["level"], line["place"]): {name: np.array(table) for name, table in line["rewards"].items()}
        for line in lines
        if {name: line[name] for name in _about(size)} == _about(size)
    }


@app.default
def main(root: Path = Path("runs/bands"), smoke: bool = False, models: list[Path] | None = None) -> None:
    """Both."""
    for stage in (accuracy, bound):
        stage(root, smoke=smoke, models=models)


if __name__ == "__main__":
    app()
