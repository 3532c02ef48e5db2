"""Trees against best of N at equal sample steps and at equal price, chosen by every reward, on the shapes model.

Which branches a tree keeps depends on the reward, how they are drawn does not. So for each prompt all branches of one
trunk are drawn once, and beside them plain images with as many steps and with half of them; every reward scores them,
at the cut and at the end. What a tree, or best of N, would have returned by each reward and at each budget is then read
off, as means over random subsets of the branches (of the plain images over all subsets, exactly).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from examples.benchmarks.cuts import best_after_cut, best_of_between
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.recording import EachReward, ScoreAll
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Table, interval_text, show_table, write_tables
from fk_reward.benchmarks.runner import Work, find_share, watch
from fk_reward.benchmarks.statistics import Outcome, estimate
from fk_reward.benchmarks.store import ResultStore
from fk_reward.benchmarks.task import Task
from fk_reward.benchmarks.works import run_works
from fk_reward.cli import run_script
from fk_reward.cli.options import SEARCH, FieldOptions, OutOption, ShardOption
from fk_reward.planning.prices import PRICES
from fk_reward.sampling.trace import Cost
from fk_reward.search import TreeSearch, fit_budget
from fk_reward.search.base import forecast
from fk_reward.shapes import benchmark_prompts
from fk_reward.terminal import open_console, say
from fk_reward.value_checks import parse_integers, parse_shard, whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline

Floats = NDArray[np.floating[Any]]
Scores = Mapping[str, Floats]
"""Reward -> `(n,)`, its scores of some images."""

VERIFIER = "shapes-verifier"
"""Judges finished images, which are right where it says 1; as a reward that chooses it is a perfect one."""
REWARDS = ("shapes-llava-reward-alignment", "shapes-imagereward", "shapes-clipscore")
_PRICED = ("sdxl", "flux.1-dev")


@dataclass(frozen=True, kw_only=True)
class TreeRequest:
    """What is drawn of each prompt and sample.

    Attributes:
        num_prompts: held-out prompts.
        num_samples: trees of each.
        seed: sample s of prompt i starts from the noise of seed + s and i.
        num_branches: of a tree, all of which are finished.
        branch_at: where they begin, as of `TreeSearch`.
        cut_at: where they are scored on the way.
        num_plain: plain images with as many steps.
        num_short: plain images with half of the steps.
        solver: of all images.
        guidance_scale: of all images.
    """

    num_prompts: int = 150
    num_samples: int = 3
    seed: int = 0
    num_branches: int = 26
    branch_at: float = 0.45
    cut_at: float = 0.7
    num_plain: int = 12
    num_short: int = 16
    solver: str = "sde-dpmsolver++-20"
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_samples", "num_branches", "num_plain", "num_short"):
            whole_number(name, getattr(self, name), minimum=1)

    @property
    def tree(self) -> TreeSearch:
        """All branches, scored at the cut and not cut."""
        everything = (self.num_branches,)
        return TreeSearch(num_branches=self.num_branches, branch_at=self.branch_at, keep=everything, at=(self.cut_at,))

    def within(self, budget: int, num_steps: int) -> TreeSearch:
        """The tree that a budget pays for.

        Raises:
            ValueError: it has more branches than are drawn, or best of N has more images.
        """
        for option, steps, drawn in (
            ("--num-plain", num_steps, self.num_plain),
            ("--num-short", num_steps // 2, self.num_short),
        ):
            if budget % steps:
                raise ValueError(f"A budget of {budget} is no whole number of images of {steps} steps.")
            if budget // steps > drawn:
                raise ValueError(
                    f"A budget of {budget} pays for best of {budget // steps}, and {drawn} are drawn: {option}."
                )
        tree = fit_budget(TreeSearch(branch_at=self.branch_at, at=(self.cut_at,)), budget, num_steps)
        if tree.num_branches > self.num_branches:
            raise ValueError(
                f"A budget of {budget} pays for {tree.num_branches} branches: draw as many, --num-branches."
            )
        return tree


class Sample(NamedTuple):
    """One tree of one prompt."""

    text: str
    task: str
    place: int
    number: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the rewards said of the images of a sample.

    Attributes:
        text: of the prompt.
        task: of the prompt.
        cut: of the branches' predictions at the cut, `(M,)`.
        tree: of the finished branches, `(M,)`.
        plain: of plain images, `(N,)`.
        short: of plain images with half of the steps.
    """

    text: str
    task: str
    cut: Scores
    tree: Scores
    plain: Scores
    short: Scores


class Drawer:
    """A pipeline as a method of `runner.run`.

    Args:
        pipe: with `EachReward`.
        request: what is drawn.
        num_steps: of the solver.
    """

    name = "draw"
    batch_size = 1

    def __init__(self, pipe: FKSteeringPipeline, request: TreeRequest, num_steps: int) -> None:
        self.pipe, self.request, self.num_steps = pipe, request, num_steps

    def answer(self, _indices: Sequence[int], samples: Sequence[Sample], /) -> list[dict[str, Any]]:
        """The scores of some samples, as lists."""
        return [self._drawn(sample) for sample in samples]

    def _drawn(self, sample: Sample) -> dict[str, Any]:
        asked = self.request
        generators = partial(particle_generators, asked.seed + sample.number, [sample.place])
        draw = partial(self.pipe, sample.text, guidance_scale=asked.guidance_scale)
        tree = draw(search=asked.tree, generator=generators(1)[0], num_inference_steps=self.num_steps).trace.steps
        found = {"cut": tree[1], "tree": tree[-1]}
        for name, number, steps in (
            ("plain", asked.num_plain, self.num_steps),
            ("short", asked.num_short, self.num_steps // 2),
        ):
            search = ScoreAll(num_particles=number, steps=())
            out = draw(search=search, generator=generators(number), num_inference_steps=steps)
            found[name] = out.trace.steps[-1]
        scores = {name: {r: part[0].tolist() for r, part in step.reward_parts.items()} for name, step in found.items()}
        return {"text": sample.text, "task": sample.task, **scores}


def cost_of(tree: TreeSearch, num_steps: int) -> Cost:
    """What an image of this tree costs."""
    foreseen = forecast(tree, num_steps)
    scored, steps = foreseen.num_scored, sum(foreseen.steps)
    return Cost(
        sample_steps=steps, denoiser_rows=2 * steps, decodes=scored, reward_calls=scored, seconds=0.0, previews=0
    )


class TreeTable:
    """The rows of the table.

    Args:
        drawn: all samples.
        request: what was drawn.
        num_steps: of the solver.
    """

    def __init__(self, drawn: Sequence[Drawn], request: TreeRequest, num_steps: int) -> None:
        self.drawn, self.request, self.num_steps = list(drawn), request, num_steps
        self.rewards = tuple(drawn[0].plain)
        self._spread = {
            name: float(np.sqrt(np.mean([one.plain[name].var(ddof=1) for one in drawn]))) for name in self.rewards
        }

    def rows(self, budget: int) -> list[dict[str, Any]]:
        """Of one budget: one image, and best of N and a tree by each reward."""
        one = [np.full(self.request.num_plain, 1 / self.request.num_plain)] * len(self.drawn)
        rows = [self._row("one image", None, budget, self._values("plain", one), {})]
        tree = self.request.within(budget, self.num_steps)
        for reward in self.rewards:
            rows += self._of_reward(reward, budget, tree)
        return rows

    def _of_reward(self, reward: str, budget: int, tree: TreeSearch) -> list[dict[str, Any]]:
        number, half = budget // self.num_steps, self.num_steps // 2
        shape = {"number": tree.num_branches, "keep": tree.keep[0]}
        found = [best_after_cut(one.cut[reward], one.tree[reward], **shape) for one in self.drawn]
        values = {
            f"best of {number}, {self.num_steps} steps": self._best("plain", reward, number),
            f"best of {budget // half}, {half} steps": self._best("short", reward, budget // half),
            f"tree, {tree.num_branches} branches, {tree.keep[0]} finished": self._values("tree", found),
        }
        plain, short, own = values
        against = {"same": values[plain], "short": values[short]}
        against |= self._of_price(reward, cost_of(tree, self.num_steps))
        return [
            self._row(name, reward, budget, found, against if name == own else {}) for name, found in values.items()
        ]

    def _of_price(self, reward: str, cost: Cost) -> dict[str, Any]:
        """Best of N that costs as much by a price list, where the reward has a price and as many images were drawn."""
        found = {}
        for name in _PRICED if reward != VERIFIER else ():
            prices = PRICES[name]
            size = prices.price(cost, reward=reward) / prices.image(self.num_steps, reward=reward)
            if size <= self.request.num_plain:
                found[name] = self._best("plain", reward, size)
        return found

    def _best(self, pool: str, reward: str, size: float) -> dict[str, list[float]]:
        return self._values(pool, [best_of_between(getattr(one, pool)[reward], size) for one in self.drawn])

    def _values(self, pool: str, weights: Sequence[Floats]) -> dict[str, list[float]]:
        """Expected values of what is returned: each reward's gain in standard deviations, and `"right"`."""
        values: dict[str, list[float]] = {name: [] for name in (*self.rewards, "right")}
        for one, weight in zip(self.drawn, weights, strict=True):
            scores = getattr(one, pool)
            for name in self.rewards:
                values[name].append(float(weight @ scores[name] - one.plain[name].mean()) / self._spread[name])
            values["right"].append(float(weight @ (scores[VERIFIER] == 1.0)))
        return values

    def _row(
        self,
        method: str,
        reward: str | None,
        budget: int,
        values: Mapping[str, Sequence[float]],
        against: Mapping[str, Mapping[str, Sequence[float]]],
    ) -> dict[str, Any]:
        kinds = {"own": reward or VERIFIER, "right": "right"}
        minus = {
            name: {kind: self._estimate(np.subtract(values[column], other[column])) for kind, column in kinds.items()}
            for name, other in against.items()
        }
        gains = {name: self._estimate(values[name]) for name in self.rewards}
        return {
            **{"method": method, "reward": reward, "budget": budget},
            **{"gains": gains, "right": self._estimate(values["right"])},
            "minus": minus,
        }

    def _estimate(self, values: Iterable[float]) -> Any:
        pairs = zip(values, self.drawn, strict=True)
        return estimate([Outcome(float(value), one.text, one.task) for value, one in pairs])


def tables(rows: Sequence[Mapping[str, Any]], rewards: Sequence[str]) -> list[Table]:
    """What was reached, and the trees less best of N; intervals as text."""
    names = {"same": "best of N", "short": "best of 2 N of half the steps"}
    names |= {name: f"best of N, price of {name}" for name in _PRICED}
    named = (Column("budget"), Column("reward", "chosen by"), Column("method"))
    reached = (*(Column(f"gain {name}", f"{name}, sd [95 %]") for name in rewards), Column("right", "right [95 %]"))
    cells = [_cells(row) for row in rows]
    trees = [cell for cell, row in zip(cells, rows, strict=True) if row["minus"]]
    found = [Table("Gains in standard deviations within a prompt, and share that is right", named + reached, cells)]
    for kind, title in (("own", "own reward, in standard deviations"), ("right", "share that is right")):
        columns = tuple(Column(f"{kind} {key}", f"{said} [95 %]") for key, said in names.items())
        found.append(Table(f"Trees less best of N: {title}", named + columns, trees))
    return found


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    cell = {**row, "reward": row["reward"] or "none", "right": interval_text(row["right"], RANGE)}
    cell |= {f"gain {name}": interval_text(ends, CHANGE) for name, ends in row["gains"].items()}
    for key, ends in row["minus"].items():
        cell |= {f"{kind} {key}": interval_text(ends[kind], CHANGE) for kind in ("own", "right")}
    return cell


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    model: str = "shapes-sd",
    reward: Annotated[list[str] | None, Parameter(alias="-r")] = None,
    budgets: str = "80,160",
    request: Annotated[TreeRequest, FieldOptions(TreeRequest, SEARCH)],
    shard: ShardOption = None,
    device: str = "auto",
    out: OutOption = Path("results/trees"),
) -> None:
    """Draw trees and plain images, and write `trees.json`, `trees.md` and `trees.tex` once all are there.

    Args:
        model: Model of the shapes world, by name or folder.
        reward: Rewards that choose, the option repeated; the three of the shapes world if not given, and always the
            verifier.
        budgets: Sample steps of a prompt, with commas.
        request: What is drawn.
        shard: i/n: this process takes every n-th sample.
        device: Device: auto, cpu or cuda.
        out: Folder of the results; an unfinished one goes on.
    """
    from fk_reward.devices import resolve_device  # noqa: PLC0415 (slow to import)
    from fk_reward.pipelines.schedulers import resolve_solver  # noqa: PLC0415

    rewards = (*dict.fromkeys(reward or REWARDS), VERIFIER)
    steps = resolve_solver(request.solver).num_inference_steps
    sizes = parse_integers("--budgets", budgets)
    for size in sizes:
        request.within(size, steps)  # before hours of drawing
    settings = {"model": model, "rewards": list(rewards), "num_steps": steps, **asdict(request)}
    samples, place = _samples(request), resolve_device(device)
    share = find_share(None if shard is None else parse_shard(shard), place)
    with share.hold(out):
        works = run_works(partial(_bind, samples, request, settings, place, out), share=share)
        watch(works, console=open_console(quiet=not share.leads))
        store = ResultStore(out)
        if store.missing(None, samples, range(len(samples))):
            say("This part is finished; the process that finishes last writes the table.")
            return
        drawn = [_read(answer, rewards) for answer in store.answers()]
        found = TreeTable(drawn, request, steps)
        rows = [row for size in sizes for row in found.rows(size)]
        _write(out, rows, rewards, settings | {"distinct_prompts": len({one.text for one in drawn})})


def _samples(request: TreeRequest) -> list[Sample]:
    return [
        Sample(prompt.text, prompt.task, place, number)
        for place, prompt in enumerate(benchmark_prompts(request.num_prompts))
        for number in range(request.num_samples)
    ]


def _bind(
    samples: Sequence[Sample], request: TreeRequest, settings: Mapping[str, Any], device: str, out: Path, writer: str
) -> list[Work]:
    from fk_reward.pipelines import FKSteeringPipeline  # noqa: PLC0415 (slow to import)

    store = ResultStore(out, settings, writer=writer)
    each = EachReward.load(settings["rewards"], device)
    pipe = FKSteeringPipeline.from_pretrained(settings["model"], reward=each, solver=request.solver).to(device)
    pipe.set_progress_bar_config(disable=True)
    return [Work(Task("trees", samples, judge=_nothing), [Drawer(pipe, request, settings["num_steps"])], store)]


def _nothing(answers: Sequence[Any]) -> None:
    """The table is made of the store."""


def _read(answer: Mapping[str, Any], rewards: Sequence[str]) -> Drawn:
    pools = {
        name: {reward: np.array(answer[name][reward]) for reward in rewards}
        for name in ("cut", "tree", "plain", "short")
    }
    return Drawn(answer["text"], answer["task"], **pools)


def _write(out: Path, rows: Sequence[Mapping[str, Any]], rewards: Sequence[str], settings: Mapping[str, Any]) -> None:
    title = f"Trees: {settings['model']}"
    facts = (
        f"{settings['num_prompts']} prompts, of which {settings['distinct_prompts']} are distinct, "
        f"{settings['num_samples']} samples each. 95 % bootstrap intervals, clustered by the text of the prompt."
    )
    found = tables(rows, rewards)
    for one in found:
        show_table(*one)
    files = write_tables(out / "trees", title, found, facts=(facts,), content={"settings": settings, "rows": rows})
    say(f"Written: {', '.join(str(path) for path in files)}")


if __name__ == "__main__":
    run_script(main)
