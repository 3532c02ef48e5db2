"""Caching schedules by evolution: NSGA-II over which components are computed at which step.

ECAD (Aggarwal, Shrivastava & Gwilliam 2025, arXiv 2506.15682, section 3.2) minimises the operations of a schedule and
maximises the reward of its images on a few prompts; each bit of the genome is one component at one step. pymoo has the
algorithm (Deb et al. 2002). Every evaluation is written down at once, and a run that is started again with the same
settings draws the same children, whose evaluations it finds there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fk_reward.benchmarks.cache_settings import EvolutionSettings
from fk_reward.durable_files import append_lines, read_json_lines
from fk_reward.pipelines.cache_schedule import CacheSchedule, Component
from fk_reward.planning.cache_costs import CacheCosts
from fk_reward.value_checks import whole_number

Genome: TypeAlias = NDArray[np.bool_]
"""`((T - 1) * C,)`, the steps after the first, at which everything is computed."""
Fitness: TypeAlias = Callable[[CacheSchedule], float]
"""A schedule to the mean reward of its images; deterministic."""

EVALUATIONS = "evaluations.jsonl"
_POINTS, _CROSSOVER = 4, 0.9
_FLIPPED = 0.05  # of the bits of a schedule that fills up the first generation


@dataclass(frozen=True)
class Evaluated:
    """A schedule and what it is worth.

    Attributes:
        schedule: with `metrics` of the same names.
        operations: of a trajectory.
        reward: mean over the prompts.
        generation: in which it was evaluated first, from 0 on.
    """

    schedule: CacheSchedule
    operations: int
    reward: float
    generation: int


@dataclass
class Evaluations:
    """What has been evaluated, in memory and in a file.

    Attributes:
        path: a JSON object a line; None to keep nothing on disk.
        known: genome -> its line.
    """

    path: Path | None = None
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Evaluations:
        """Read what an earlier run has left in a folder."""
        path = folder / EVALUATIONS
        lines = read_json_lines(path) if path.exists() else ()
        return cls(path, {line["genome"]: line for _, line in lines})

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        """Keep an evaluation, on disk before the next one begins."""
        if self.path is not None:
            append_lines(self.path, [json.dumps(line)])
        self.known[line["genome"]] = line
        return line


def evolve(
    fitness: Fitness,
    costs: CacheCosts,
    *,
    num_steps: int,
    settings: EvolutionSettings,
    evaluations: Evaluations | None = None,
) -> Iterator[list[Evaluated]]:
    """Evolve schedules.

    Args:
        fitness: draws by a schedule and rewards.
        costs: of the model's components, which are those of the genome.
        num_steps: T.
        settings: how long, how broadly.
        evaluations: of an earlier run with the same arguments; they are not made again.

    Yields:
        After each generation everything that was evaluated up to then, each genome once, in its order.

    Raises:
        ImportError: pymoo is not installed.
        ValueError: fewer than two steps, of which the first is always computed.
    """
    whole_number("num_steps", num_steps, minimum=2)
    components = tuple(costs.components)
    kept, seen = Evaluations() if evaluations is None else evaluations, dict[str, Evaluated]()
    first = first_generation(components, num_steps=num_steps, settings=settings)
    names = {_key(genome_of(schedule)): schedule.name for schedule in first}
    algorithm = _nsga2(np.stack([genome_of(schedule) for schedule in first]), settings)
    for generation in range(settings.num_generations):
        asked = algorithm.ask()
        for genome in asked.get("X"):
            key = _key(genome)
            if key not in seen:
                name = names.get(key, f"generation-{generation:03}-{len(seen):05}")
                schedule = schedule_of(genome, components, name=name)
                seen[key] = _evaluated(schedule, key, generation, fitness=fitness, costs=costs, kept=kept)
        objectives = [[seen[_key(x)].operations / costs.step, -seen[_key(x)].reward] for x in asked.get("X")]
        _tell(algorithm, asked, np.array(objectives, dtype=np.float64))
        yield list(seen.values())


def _evaluated(
    schedule: CacheSchedule, key: str, generation: int, *, fitness: Fitness, costs: CacheCosts, kept: Evaluations
) -> Evaluated:
    line = kept.known.get(key)
    if line is None:
        line = kept.add({"genome": key, "name": schedule.name, "generation": generation, "reward": fitness(schedule)})
    operations = costs.operations(schedule)
    metrics = {"operations": operations, "share": costs.share(schedule), "reward": line["reward"]}
    return Evaluated(schedule.replace(metrics=metrics), operations, float(line["reward"]), generation)


def front(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """Those that nothing else beats in both, from the cheapest on: each dearer one has a higher reward.

    Example:
        >>> schedule = CacheSchedule.every([("0", "ff")], num_steps=2, interval=1)
        >>> points = [Evaluated(schedule, *one, 0) for one in ((3, 0.5), (1, 0.2), (2, 0.6), (4, 0.9))]
        >>> [(one.operations, one.reward) for one in front(points)]
        [(1, 0.2), (2, 0.6), (4, 0.9)]
    """
    best: list[Evaluated] = []
    for one in sorted(evaluated, key=lambda one: (one.operations, -one.reward)):
        if not best or one.reward > best[-1].reward:
            best.append(one)
    return best


def genome_of(schedule: CacheSchedule) -> Genome:
    """The bits of a schedule that evolve."""
    return np.array(schedule.steps[1:], dtype=bool).ravel()


def schedule_of(genome: Genome, components: Sequence[Component], *, name: str = "schedule") -> CacheSchedule:
    """The schedule of a genome.

    Example:
        >>> schedule_of(np.array([False, True]), [("0", "ff")]).steps
        ((True,), (False,), (True,))
    """
    rows = np.asarray(genome, dtype=bool).reshape(-1, len(components)).tolist()
    steps = ((True,) * len(components), *map(tuple, rows))
    return CacheSchedule(components=tuple(components), steps=steps, name=name)


def first_generation(
    components: Sequence[Component], *, num_steps: int, settings: EvolutionSettings
) -> list[CacheSchedule]:
    """Known schedules: everything computed, every k-th step, the same after a quarter of the steps, or of one kind.

    Where there are fewer than the population has room for, copies of them with a few flipped bits follow.

    Args:
        components: of the model.
        num_steps: T.
        settings: of the evolution.

    Example:
        >>> settings = EvolutionSettings(population_size=4)
        >>> [one.name for one in first_generation([("0", "ff")], num_steps=4, settings=settings)]
        ['every-1', 'every-2', 'every-3', 'every-4']
    """
    every = partial(CacheSchedule.every, tuple(components), num_steps=num_steps)
    intervals = range(2, num_steps + 1)
    kinds = list(dict.fromkeys(name for _, name in components))
    known = [every(interval=interval) for interval in range(1, num_steps + 1)]
    known += [every(interval=interval, first=num_steps // 4) for interval in intervals if num_steps > len(kinds)]
    known += [every(interval=interval, only=[kind]) for interval in intervals for kind in kinds]
    unique = list({_key(genome_of(one)): one for one in reversed(known)}.values())[::-1]
    unique = _spread_out(unique, every_k=num_steps, number=settings.population_size)
    return unique + _flipped(unique, settings.population_size - len(unique), components, seed=settings.evolution_seed)


def _spread_out(known: list[CacheSchedule], *, every_k: int, number: int) -> list[CacheSchedule]:
    """All every-k schedules first; of the others as many as there is room for."""
    plain = [one for one in known if one.name.removeprefix("every-").isdigit()][:every_k]
    others = [one for one in known if one not in plain]
    return (plain + others)[:number]


def _flipped(
    known: Sequence[CacheSchedule], number: int, components: Sequence[Component], *, seed: int
) -> list[CacheSchedule]:
    random, made = np.random.default_rng(seed), []
    for index in range(max(0, number)):
        genome = genome_of(known[index % len(known)])
        flips = random.random(genome.shape) < _FLIPPED
        made.append(schedule_of(genome ^ flips, components, name=f"flipped-{index:03}"))
    return made


def _key(genome: Genome) -> str:
    """Text of a genome; its length is that of the model and its steps, which a run does not change."""
    return np.packbits(np.asarray(genome, dtype=bool)).tobytes().hex()


def require_pymoo() -> None:
    """Raise ImportError with what to install, before anything is loaded or drawn."""
    try:
        import pymoo.algorithms.moo.nsga2  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Evolving schedules needs pymoo: pip install 'fk-reward[cache]' ({error}).") from error


def _nsga2(genomes: NDArray[np.bool_], settings: EvolutionSettings) -> Any:
    require_pymoo()
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.pntx import PointCrossover
    from pymoo.operators.mutation.bitflip import BitflipMutation

    algorithm = NSGA2(
        pop_size=settings.population_size,
        sampling=genomes,
        crossover=PointCrossover(prob=_CROSSOVER, n_points=max(1, min(_POINTS, genomes.shape[1] - 1))),
        mutation=BitflipMutation(),  # of every child, one bit in the mean
    )
    problem = Problem(n_var=genomes.shape[1], n_obj=2, xl=0, xu=1, vtype=bool)
    algorithm.setup(problem, termination=NoTermination(), seed=settings.evolution_seed, verbose=False)
    return algorithm


def _tell(algorithm: Any, asked: Any, objectives: NDArray[np.float64]) -> None:
    from pymoo.core.evaluator import Evaluator
    from pymoo.problems.static import StaticProblem

    Evaluator().eval(StaticProblem(algorithm.problem, F=objectives), asked)
    algorithm.tell(infills=asked)


def summary(evaluated: Sequence[Evaluated], costs: CacheCosts) -> list[Mapping[str, Any]]:
    """The front and the every-k schedules in numbers, from the cheapest on."""
    best = front(evaluated)
    chosen = best + [one for one in evaluated if one.schedule.name.startswith("every-") and one not in best]
    return [
        {
            "name": one.schedule.name,
            "share": costs.share(one.schedule),
            "operations": one.operations,
            "reward": one.reward,
            "front": one in best,
        }
        for one in sorted(chosen, key=lambda one: one.operations)
    ]
