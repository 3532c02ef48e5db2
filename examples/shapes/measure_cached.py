"""Measures what a cached denoiser is worth: the evolved front against every-k caching, and searches at equal cost.

    fk-reward cache evolve --suite shapes-validation --num-prompts 24 --eta 1 --out runs/cache
    python examples/shapes/measure_cached.py runs/cache
    python examples/shapes/measure_cached.py runs/cache --smoke    # only that it runs

Two processes share it: `--shard 0/2` and `--shard 1/2`; then the command without a shard has nothing left to draw.

Two questions, on prompts that the evolution has not seen. Does the front dominate: at no more operations than every
k-th step, is an evolved schedule better? And what do the operations buy that a schedule saves: plain images, best of N
and FK steering with everything computed, and with the schedule and more particles for the same operations.

Nothing is chosen on these prompts. The evolved schedule that meets an every-k schedule is the one that the evolution
liked most among those of no more operations, and so is the one that steers, among those below `--max-share`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import cyclopts
import torch

from fk_reward.benchmarks.cache_comparison import UNCACHED, CachedImages, outcomes, verdicts
from fk_reward.benchmarks.cache_settings import CachedDrawing
from fk_reward.benchmarks.geneval.suites import find_suite
from fk_reward.benchmarks.report import (
    CHANGE,
    RANGE,
    Column,
    Report,
    Table,
    interval_text,
    show_report,
    write_tables,
)
from fk_reward.benchmarks.statistics import Ends, Outcome, estimate, paired_differences
from fk_reward.benchmarks.store import weights_digest
from fk_reward.benchmarks.task import TaskOptions
from fk_reward.durable_files import append_lines, read_json, read_json_lines
from fk_reward.pipelines import CacheSchedule
from fk_reward.rewards import Reward, load_reward
from fk_reward.search import BestOfN, FKSteeringConfig, SearchConfig
from fk_reward.value_checks import parse_shard, real_number, whole_number

T = TypeVar("T")
Figures = dict[str, dict[tuple[int, int], Outcome]]
"""Reward, accuracy, held-out rewards -> an outcome for each image."""

PAIRS = (
    ("best of N, cached", "best of N"),
    ("FK, cached", "FK"),
    ("FK", "best of N"),
    ("FK, cached", "best of N, cached"),
    ("FK, cached", "best of N"),
)
"""Searches that are compared: the first less the second."""


@dataclass(frozen=True)
class Evolved:
    """What `fk-reward cache evolve` has left in a folder.

    Attributes:
        drawing: what its schedules were evolved for.
        front: schedules that nothing beat there; their metrics say operations and reward.
        every_k: those that compute every k-th step, k > 1, from the dearest on.
    """

    drawing: CachedDrawing
    front: tuple[CacheSchedule, ...]
    every_k: tuple[CacheSchedule, ...]

    @classmethod
    def read(cls, folder: Path) -> Evolved:
        """Read a folder.

        Raises:
            FileNotFoundError: nothing has evolved there, or not to its end.
            ValueError: schedules for trajectories without noise, which FK steering does not draw.
        """
        remedy = "Evolve schedules first: fk-reward cache evolve --suite shapes-validation --eta 1 --out ..."
        settings = read_json(folder / "settings.json", remedy=remedy)
        drawing = CachedDrawing(**{one.name: settings[one.name] for one in fields(CachedDrawing)})
        if drawing.solver is None and not drawing.eta:
            raise ValueError(f"The schedules in {folder} evolved with eta {drawing.eta}, and steering needs --eta 1.")
        front, others = ([CacheSchedule.load(path) for path in sorted(folder.glob(f"{kind}/*.json"))]
                         for kind in ("front", "every-k"))  # fmt: skip
        if not front:
            raise FileNotFoundError(f"{folder}/front holds no schedules. {remedy}")
        every_k = sorted((one for one in (*front, *others) if _interval(one) > 1), key=_interval)
        return cls(drawing, tuple(front), tuple(every_k))

    def best_within(self, share: float) -> CacheSchedule | None:
        """The schedule of the front with the highest reward in the evolution, among those of at most this share."""
        cheap = [one for one in self.front if one.metrics["share"] <= share]
        return max(cheap, key=lambda one: float(one.metrics["reward"]), default=None)


def _interval(schedule: CacheSchedule) -> int:
    """The k of every-k; 0 of another schedule, also of every-k of some components or from some step on."""
    number = schedule.name.removeprefix("every-")
    return int(number) if number.isdigit() else 0


def spread(items: Sequence[T], number: int) -> list[T]:
    """At most so many of the items, evenly spaced, the first and the last among them.

    Example:
        >>> spread([2, 3, 4, 5, 6, 7], 3)
        [2, 4, 7]
    """
    if len(items) <= number:
        return list(items)
    return [items[place * (len(items) - 1) // max(1, number - 1)] for place in range(number)]


@dataclass(frozen=True)
class Method:
    """A search with a denoiser.

    Attributes:
        name: in the tables.
        search: who goes on.
        schedule: of the denoiser; None to compute everything.
        share: operations of a trajectory, of those with everything computed.
    """

    name: str
    search: SearchConfig
    schedule: CacheSchedule | None = None
    share: float = 1.0

    @property
    def operations(self) -> float:
        """Of the denoiser for an image, in plain images with everything computed."""
        return self.share * self.search.num_particles


def steered_methods(schedule: CacheSchedule, share: float, particles: int) -> list[Method]:
    """Plain images and both searches, with everything computed, and cached with as many particles as that pays for.

    Example:
        >>> every_2 = CacheSchedule.every([("0", "ff")], num_steps=4, interval=2)
        >>> [(one.name, one.search.num_particles, one.operations) for one in steered_methods(every_2, 0.75, 8)][-2:]
        [('FK', 8, 8.0), ('FK, cached', 10, 7.5)]
    """
    paid = int(particles / share + 1e-9)  # 8 / 0.8 is 10
    made = []
    for name, search, sizes in (
        ("plain", BestOfN, (1, 1)),
        ("best of N", BestOfN, (particles, paid)),
        ("FK", FKSteeringConfig, (particles, paid)),
    ):
        made.append(Method(name, search(num_particles=sizes[0])))
        made.append(Method(f"{name}, cached", search(num_particles=sizes[1]), schedule, share))
    return made


class Measurements:
    """Draws and judges, a line for each method in a file; what stands there already is not drawn again.

    Args:
        drawn: draws one image of each prompt.
        samples: prompts of the suite.
        judge: of the suite.
        heldout: rewards that only score.
        path: the file; those of other processes have its folder, and their shard in their names.
    """

    def __init__(
        self, drawn: CachedImages, samples: Sequence[Any], judge: Any, heldout: dict[str, Reward], path: Path
    ) -> None:
        self.drawn, self.samples, self.judge, self.heldout, self.path = drawn, samples, judge, heldout, path
        self.prompts = [sample["prompt"] for sample in samples]
        scored_by = {name: weights_digest([reward]) for name, reward in heldout.items()}
        self.about = [drawn.describe(), self.prompts, judge.identity, scored_by]
        files = sorted(path.parent.glob("figures*.jsonl"))
        self.known = {line["key"]: line for file in files for _, line in read_json_lines(file)}

    def of(self, method: Method) -> tuple[Figures, float]:
        """Figures of a method, and the seconds of a prompt."""
        steps = None if method.schedule is None else method.schedule.steps
        said = json.dumps([self.about, steps, repr(method.search)], default=str)
        key = hashlib.sha256(said.encode()).hexdigest()[:16]
        line = self.known.get(key) or self._drawn(method, key)
        figures = {name: outcomes(values, self.samples) for name, values in line["figures"].items()}
        return figures, line["seconds"] / len(self.prompts)

    def _drawn(self, method: Method, key: str) -> dict[str, Any]:
        start = time.perf_counter()
        images, rewards = self.drawn.draw(method.schedule, self.prompts, search=method.search)
        seconds = time.perf_counter() - start
        found = {"reward": rewards, "accuracy": verdicts(self.judge, images, self.samples)}
        for name, reward in self.heldout.items():
            pairs = zip(images, self.prompts, strict=True)
            found[name] = [reward(ours, [prompt] * len(ours)).tolist() for ours, prompt in pairs]
        line = {"key": key, "method": method.name, "seconds": seconds, "figures": found}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(self.path, [json.dumps(line)])
        self.known[key] = line
        print(f"{method.name}: {seconds / 60:.1f} minutes", flush=True)
        return line


def estimates(figures: Figures) -> dict[str, Ends]:
    """Each figure with its interval."""
    return {name: estimate(found.values()) for name, found in figures.items()}


def gains(first: Figures, second: Figures) -> dict[str, Ends]:
    """Paired differences of each figure, with intervals."""
    return {f"{name}_gain": estimate(paired_differences(first[name], second[name])) for name in first}


def meetings(evolved: Evolved, number: int) -> list[tuple[CacheSchedule, CacheSchedule | None]]:
    """Every-k schedules, each with the evolved one of no more operations; None where there is none."""
    return [(one, evolved.best_within(float(one.metrics["share"]))) for one in spread(evolved.every_k, number)]


def plain_methods(evolved: Evolved, number: int) -> dict[str, Method]:
    """Plain images by everything computed, and by each schedule of `meetings`."""
    plain = BestOfN(num_particles=1)
    schedules = {one.name: one for pair in meetings(evolved, number) for one in pair if one is not None}
    return {UNCACHED: Method(UNCACHED, plain), **{name: Method(name, plain, one) for name, one in schedules.items()}}


def front_rows(evolved: Evolved, measured: Measurements, number: int) -> tuple[list[dict[str, Any]], ...]:
    """Every-k schedules and the evolved ones that meet them: each by itself, and their differences."""
    costs, pairs = measured.drawn.costs(), meetings(evolved, number)
    methods = plain_methods(evolved, number)
    found = {name: measured.of(method)[0] for name, method in methods.items()}
    whole = found.pop(UNCACHED)
    schedules = {name: method.schedule for name, method in methods.items() if method.schedule is not None}
    shares = {name: costs.share(one) for name, one in schedules.items()}
    rows = [{"name": UNCACHED, "share": 1.0, **estimates(whole)}]
    for name in sorted(schedules, key=shares.__getitem__, reverse=True):
        rows.append({"name": name, "share": shares[name], **estimates(found[name]), **gains(found[name], whole)})
    differences = [
        {
            "name": every_k.name,
            "share": shares[every_k.name],
            "other": None if other is None else other.name,
            "other_share": None if other is None else shares[other.name],
            **({} if other is None else gains(found[other.name], found[every_k.name])),
        }
        for every_k, other in pairs
    ]
    return rows, differences


def steering_rows(methods: Iterable[Method], measured: Measurements) -> tuple[list[dict[str, Any]], ...]:
    """Each method by itself, and the differences of `PAIRS`."""
    rows, found = [], {}
    for method in methods:
        found[method.name], seconds = measured.of(method)
        size = {"particles": method.search.num_particles, "operations": method.operations, "seconds": seconds}
        rows.append({"name": method.name, **size, **estimates(found[method.name])})
    differences = [{"name": f"{first} - {second}", **gains(found[first], found[second])} for first, second in PAIRS]
    return rows, differences


SHARE = Column("share", "operations", "{:.1%}")
OTHER = (Column("other", "evolved"), Column("other_share", "its operations", "{:.1%}"))
SIZES = (
    Column("particles", style="{:d}"),
    Column("operations", "operations, in plain images", "{:.2f}"),
    Column("seconds", "seconds a prompt", "{:.2f}"),
)


def tables_of(front: Sequence[list[dict[str, Any]]], steering: Sequence[list[dict[str, Any]]]) -> list[Table]:
    """The four tables, the intervals as text."""
    figures = [name for name, value in front[0][0].items() if isinstance(value, dict)]
    own = tuple(Column(name, f"{name} [95 %]") for name in figures)
    change = tuple(Column(f"{name}_gain", f"{name}, difference [95 %]") for name in figures)
    schedule, method = Column("name", "schedule"), Column("name", "method")
    every_k = Column("name", "every k-th step")
    made = [
        Table("Plain images by caching schedules, and what they are above everything computed",
              (schedule, SHARE, *own, *change), front[0]),
        Table("The evolved schedule of no more operations, less every k-th step", (every_k, SHARE, *OTHER, *change),
              front[1]),
        Table("Searches at equal operations", (method, *SIZES, *own), steering[0]),
        Table("Differences of searches at equal operations", (method, *change), steering[1]),
    ]  # fmt: skip
    return [table._replace(rows=[_shown(row) for row in table.rows]) for table in made]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: interval_text(value, CHANGE if name.endswith("_gain") else RANGE) if isinstance(value, dict) else value
        for name, value in row.items()
    }


def main(  # noqa: PLR0913 (a command's options)
    evolved: Path = Path("runs/cache"),
    output_dir: Path = Path("runs/cached"),
    *,
    suite: str = "shapes",
    num_prompts: int = 480,
    particles: int = 8,
    max_share: float = 0.6,
    num_schedules: int = 6,
    heldout: tuple[str, ...] = ("shapes-imagereward",),
    seed: int = 1,
    batch_prompts: int = 4,
    smoke: bool = False,
    shard: str | None = None,
) -> None:
    """Measure, print tables, and write them as JSON, Markdown and LaTeX; a run that was stopped goes on.

    Args:
        evolved: Folder of `fk-reward cache evolve`, whose model, reward and solver are taken.
        output_dir: Where `cached.md`, `cached.json`, `cached.tex` and the figures of each image go.
        suite: Prompts and judge.
        num_prompts: Prompts, the tasks in turn.
        particles: Of a search with everything computed; a cached one has more.
        max_share: Share of the operations that the schedule which steers may take at most.
        num_schedules: Every-k schedules that are compared.
        heldout: Rewards that only score.
        seed: Of the noise.
        batch_prompts: Prompts that are drawn in one call.
        smoke: Six prompts, two particles and two schedules.
        shard: i/n leaves to this process every n-th of what is drawn, and no tables.
    """
    if smoke:
        num_prompts, particles, num_schedules = 6, 2, 2
    whole_number("--particles", particles, minimum=1)
    whole_number("--num-schedules", num_schedules, minimum=1)
    found = Evolved.read(evolved)
    steers = steering_schedule(found, max_share)
    drawing = replace(found.drawing, num_images=1, seed=seed, batch_prompts=batch_prompts)
    drawn = CachedImages.load(drawing, device="cpu", dtype=torch.float32)
    task = find_suite(suite).task(TaskOptions(num_prompts=num_prompts))
    scorers = {name: load_reward(name) for name in heldout}
    name = "figures.jsonl" if shard is None else f"figures-{shard.replace('/', '-of-')}.jsonl"
    measured = Measurements(drawn, task.samples, task.judge("cpu"), scorers, output_dir / name)
    methods = steered_methods(steers, drawn.costs().share(steers), particles)
    if shard is not None:
        index, count = parse_shard(shard)
        everything = [*plain_methods(found, num_schedules).values(), *methods]
        distinct = {(str(one.schedule and one.schedule.steps), repr(one.search)): one for one in everything}
        for method in [*distinct.values()][index::count]:
            measured.of(method)
        return
    front = front_rows(found, measured, num_schedules)
    steering = steering_rows(methods, measured)
    facts = facts_of(measured, suite=suite, reward=drawing.reward, schedule=steers.name)
    keys = ("schedules", "front", "searches", "differences")
    content = dict(zip(keys, (*front, *steering), strict=True)) | {"facts": facts}
    title, tables = f"Cached denoiser of {drawing.model}", tables_of(front, steering)
    files = write_tables(output_dir / "cached", title, tables, facts=(facts,), content=content)
    show_report(Report(title, tables, files, (facts,)))


def steering_schedule(evolved: Evolved, max_share: float) -> CacheSchedule:
    """The schedule of a search.

    Raises:
        ValueError: no schedule is so cheap.
    """
    real_number("--max-share", max_share, low=0.0, high=1.0)
    found = evolved.best_within(max_share)
    if found is None:
        cheapest = min(one.metrics["share"] for one in evolved.front)
        raise ValueError(f"--max-share: the cheapest of the front takes {cheapest:.1%}, got {max_share:.1%}.")
    return found


def facts_of(measured: Measurements, *, suite: str, reward: str, schedule: str) -> str:
    """What the tables are of."""
    return (
        f"{len(measured.prompts)} prompts of the suite {suite}, {len(set(measured.prompts))} of them distinct; "
        f"{measured.drawn.arguments['num_inference_steps']} steps; steered by {reward}, cached searches with "
        f"{schedule}. Operations are those of the denoiser. Schedules were chosen by their rewards on the prompts of "
        "the evolution. Brackets are 95 % bootstrap intervals, clustered by the text of the prompt."
    )


if __name__ == "__main__":
    cyclopts.run(main)
