"""How early a reward knows which starts of a prompt will be good, by step and look-ahead, on the shapes model.

A reward with noise bands, `-r NAME -r NAME@bands`, is held against itself without them, and against a look-ahead at
equal sample steps: what is known after 6 steps with 3 ahead, and after 8 with the prediction of the step, cost the
same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from cyclopts import Parameter
from diffusers import DPMSolverMultistepScheduler
from torch import Generator, Tensor

from examples.benchmarks.cuts import Starts, best_uses, require_baseline
from fk_reward.benchmarks.report import CHANGE, Column, interval_text, show_table, write_json
from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.output_folder import hold_folder
from fk_reward.rewards.noise_bands import name_without_bands
from fk_reward.search.base import PlainPopulation
from fk_reward.shapes import benchmark_prompts
from fk_reward.terminal import say
from fk_reward.value_checks import parse_integers, whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline

VERIFIER = "shapes-verifier"
"""Judges the finished images, and is the column of a perfect reward."""
REWARDS = ("shapes-llava-reward-alignment", "shapes-clipscore", "shapes-imagereward")
COLUMNS = (
    Column("reward"),
    Column("after", "decided after", "{:d}"),
    Column("lookahead", style="{:d}"),
    Column("sample_steps", "sample steps", "{:d}"),
    Column("accuracy", "pair accuracy", "{:.3f}"),
    Column("accuracy_interval", "95 %"),
    Column("correlation", "rank correlation", "{:.3f}"),
    Column("correlation_interval", "95 %"),
)
DIFFERENCE_COLUMNS = (
    Column("reward"),
    Column("judged", "judged"),
    Column("minus", "minus"),
    Column("sample_steps", "sample steps", "{:d}"),
    Column("accuracy", "pair accuracy", "{:+.3f}"),
    Column("accuracy_interval", "95 %"),
    Column("correlation", "rank correlation", "{:+.3f}"),
    Column("correlation_interval", "95 %"),
)
USE_COLUMNS = (
    Column("reward"),
    Column("lookahead", style="{:d}"),
    Column("cuts", "starts, cut before step, finished"),
    Column("gain", "own reward, sd", "{:+.2f}"),
    Column("gain_minus", "minus best of N [95 %]"),
    Column("right", "right", "{:.3f}"),
    Column("right_minus", "minus best of N [95 %]"),
)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Scores before some steps, and leaves everybody where they are.

    Attributes:
        num_particles: K.
        steps: indices of the scheduler steps.
    """

    default_eta: ClassVar[float | None] = None

    num_particles: int
    steps: tuple[int, ...]

    def population(self, num_groups: int = 1, generators: Any = None, *, spread: float | None = None) -> Watchers:  # noqa: ARG002 (of all searches)
        """The particles of one call."""
        return Watchers(self, num_groups)


class Watchers(PlainPopulation):
    """Particles that are scored and stay."""

    def __init__(self, config: Watch, num_groups: int) -> None:
        super().__init__(config.num_particles, num_groups)
        self._steps = config.steps

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        """All of them go on from each step."""
        return {step: self.first_particles for step in self._steps if step < num_steps}


@dataclass(frozen=True)
class Knowledge:
    """What the rewards said of the starts of one prompt, `(K,)` each.

    Attributes:
        text: the prompt.
        predicted: (reward, step, look-ahead) -> rewards of the predictions.
        finished: reward -> rewards of the finished images.
        correct: verdicts on the finished images.
    """

    text: str
    predicted: Mapping[tuple[str, int, int], Tensor]
    finished: Mapping[str, Tensor]
    correct: Tensor


def pair_accuracy(rewards: Tensor, correct: Tensor) -> float | None:
    """Share of the pairs of a correct and a wrong image that a reward orders rightly; ties count half.

    Args:
        rewards: `(K,)`.
        correct: `(K,)` bool.

    Returns:
        None where all images are correct, or none.
    """
    differences = rewards[correct][:, None] - rewards[~correct][None, :]
    return (
        float((differences > 0).float().mean() + 0.5 * (differences == 0).float().mean())
        if differences.numel()
        else None
    )


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of `(K,)` and `(K,)`, ties at their mean rank; None where one of them is constant."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    return None if (ranks.std(1) == 0).any() else float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return (below + (equal - 1) / 2).double()


def watch(
    pipe: FKSteeringPipeline,
    text: str,
    *,
    search: Watch,
    lookaheads: Sequence[int],
    seed: int,
    arguments: Mapping[str, Any],
) -> Knowledge:
    """Draw the starts of a prompt once for each look-ahead, which are the same images each time.

    Args:
        pipe: whose reward is a composition of several, the verifier among them.
        text: the prompt.
        search: the steps.
        lookaheads: numbers of coarse steps.
        seed: of the first start.
        arguments: of the pipeline's call.

    Raises:
        RuntimeError: where a look-ahead has changed the images, which would be a defect.
    """
    predicted: dict[tuple[str, int, int], Tensor] = {}
    finished: dict[str, Tensor] = {}
    for lookahead in lookaheads:
        generators = [Generator().manual_seed(seed + start) for start in range(search.num_particles)]
        trace = pipe(text, search=search, lookahead=lookahead, generator=generators, **arguments).trace
        *scored, last = trace.steps
        predicted |= {(name, s.step, lookahead): part[0] for s in scored for name, part in s.reward_parts.items()}
        parts = {name: part[0] for name, part in last.reward_parts.items()}
        if finished and any(not torch.equal(finished[name], parts[name]) for name in parts):
            raise RuntimeError(f"The finished images of {text!r} are others with lookahead={lookahead}.")
        finished = parts
    return Knowledge(text, predicted, finished, finished[VERIFIER] == 1.0)


def summarize(known: Sequence[Knowledge]) -> list[dict[str, Any]]:
    """A row for each reward, step and look-ahead, and one of the finished images; intervals are clustered by prompt."""
    rows = []
    for reward in known[0].finished:
        for name, step, lookahead in known[0].predicted:
            if name == reward:
                scores = [one.predicted[name, step, lookahead] for one in known]
                cost = {"after": step, "lookahead": lookahead, "sample_steps": step + lookahead}
                rows.append({"reward": reward, **cost, **_measured(known, reward, scores)})
        rows.append({"reward": f"{reward}, finished", **_measured(known, reward, [o.finished[reward] for o in known])})
    return rows


def _measured(known: Sequence[Knowledge], reward: str, scores: Sequence[Tensor]) -> dict[str, Any]:
    return _means(known, _figures(known, reward, scores))


def _figures(known: Sequence[Knowledge], reward: str, scores: Sequence[Tensor]) -> dict[str, list[float | None]]:
    """Pair accuracy and rank correlation of each prompt; the latter with what judges finished images."""
    finished = name_without_bands(reward)
    return {
        "accuracy": [pair_accuracy(score, one.correct) for score, one in zip(scores, known, strict=True)],
        "correlation": [
            rank_correlation(score, one.finished.get(finished, one.finished[reward]))
            for score, one in zip(scores, known, strict=True)
        ],
    }


def _means(known: Sequence[Knowledge], figures: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, values in figures.items():
        there = [(value, one.text) for value, one in zip(values, known, strict=True) if value is not None]
        row[f"{name}_prompts"] = len(there)
        if there:
            interval = clustered_bootstrap(*zip(*there, strict=True))
            row |= {name: interval.estimate, f"{name}_interval": f"[{interval.low:.3f}, {interval.high:.3f}]"}
    return row


Key = tuple[str, int, int]
"""Reward, step, look-ahead."""


def comparable(keys: Sequence[Key]) -> Iterator[tuple[Key, Key]]:
    """What is compared: the same step and look-ahead with noise bands and without, and equal sample steps.

    Example:
        >>> [f"{one} - {other}" for one, other in comparable([("a", 6, 3), ("a", 8, 1), ("a@bands", 8, 1)])][1]
        "('a', 6, 3) - ('a@bands', 8, 1)"
    """
    for first, second in itertools.permutations(keys, 2):
        (name, step, ahead), (other, its_step, its_ahead) = first, second
        if step + ahead != its_step + its_ahead or name_without_bands(name) != name_without_bands(other):
            continue
        if ahead > its_ahead or (ahead == its_ahead and name != other == name_without_bands(name)):
            yield first, second


def differences(known: Sequence[Knowledge]) -> list[dict[str, Any]]:
    """A row for each comparison, paired by prompt."""
    rows = []
    for first, second in comparable(list(known[0].predicted)):
        ours, theirs = (_figures(known, key[0], [one.predicted[key] for one in known]) for key in (first, second))
        gains = {
            name: [None if x is None or y is None else x - y for x, y in zip(values, theirs[name], strict=True)]
            for name, values in ours.items()
        }
        said = {"judged": _said(first), "minus": _said(second), "sample_steps": first[1] + first[2]}
        rows.append({"reward": name_without_bands(first[0]), **said, **_means(known, gains)})
    return rows


def uses(known: Sequence[Knowledge], *, budget: int, num_steps: int) -> list[dict[str, Any]]:
    """The best cut for each reward and look-ahead, as `best_uses` has it."""
    rows = []
    for reward in known[0].finished:
        starts = [
            Starts(
                one.text,
                {(step, ahead): part.numpy() for (name, step, ahead), part in one.predicted.items() if name == reward},
                one.finished[reward].double().numpy(),
                one.correct.double().numpy(),
            )
            for one in known
        ]
        rows += [{"reward": reward, **row} for row in best_uses(starts, budget=budget, num_steps=num_steps)]
    return rows


def _said(key: Key) -> str:
    name, step, lookahead = key
    return f"after {step}, {lookahead} ahead{', bands' if name_without_bands(name) != name else ''}"


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    model: str = "shapes-sd",
    solver: str | None = None,
    reward: Annotated[list[str] | None, Parameter(alias="-r")] = None,
    num_prompts: int = 72,
    num_particles: int = 13,
    steps: int | None = None,
    after: str = "4,6,8,10",
    lookahead: str = "1,2,3",
    budget: int = 80,
    guidance_scale: float = 3.0,
    seed: int = 0,
    device: str = "auto",
    out: OutOption = Path("results/lookahead"),
) -> None:
    """Measure pair accuracy and rank correlation within prompts by step and look-ahead; writes `lookahead.json`.

    It also says what a search that cuts once would have made of a budget: how many starts, where to cut, how far ahead.

    Args:
        model: Model of the shapes world, by name or folder.
        solver: Solver by name; DPM-Solver++ of 20 steps, which adds no noise, if not given.
        reward: Rewards to measure, the option repeated; the three of the shapes world if not given.
        num_prompts: Held-out prompts.
        num_particles: Starts of each prompt.
        steps: Scheduler steps; those of the solver if not given.
        after: Steps before which the predictions are scored, with commas.
        lookahead: Numbers of coarse steps, with commas.
        budget: Sample steps of a prompt.
        guidance_scale: Classifier-free guidance.
        seed: Start k of a prompt has the noise of seed + 1000 * prompt + k.
        device: Device: auto, cpu or cuda.
        out: Folder of the results.
    """
    whole_number("--num-prompts", num_prompts, minimum=1)
    whole_number("--num-particles", num_particles, minimum=2)
    search = Watch(num_particles=num_particles, steps=parse_integers("--after", after))
    rewards, lookaheads = tuple(reward or REWARDS), parse_integers("--lookahead", lookahead)
    prompts = [prompt.text for prompt in benchmark_prompts(num_prompts)]
    with hold_folder(out):
        pipe = _load(model, rewards=rewards, device=device, solver=solver)
        steps = steps or pipe.solver.num_inference_steps
        require_baseline(budget, steps, num_particles)  # before hours of drawing
        arguments = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        shared = {"search": search, "lookaheads": lookaheads, "arguments": arguments}
        known = [watch(pipe, text, seed=seed + 1000 * index, **shared) for index, text in enumerate(prompts)]
        rows = summarize(known)
        scheduler = type(pipe.scheduler).__name__
        show_table(f"{model}, {scheduler}, {steps} steps, {num_prompts} prompts x {num_particles}", COLUMNS, rows)
        compared = differences(known)
        if compared:
            show_table("Differences at equal sample steps, paired by prompt", DIFFERENCE_COLUMNS, compared)
        used = uses(known, budget=budget, num_steps=steps)
        if used:
            show_table(f"Best use of {budget} sample steps by one cut", USE_COLUMNS, [_use_cells(row) for row in used])
        settings = {"model": model, "rewards": rewards, "num_prompts": num_prompts, "num_particles": num_particles}
        settings |= {"distinct_prompts": len(set(prompts)), "scheduler": scheduler, "seed": seed, **arguments}
        settings |= {"budget": budget}
        content = {"settings": settings, "rows": rows, "differences": compared, "uses": used}
        say(f"Results: {write_json(out / 'lookahead.json', content)}")


def _use_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    cuts = "; ".join("{number}, {step}, {keep}".format(**cut) for cut in row["cuts"])
    return {**row, "cuts": cuts} | {name: interval_text(row[name], CHANGE) for name in ("gain_minus", "right_minus")}


def _load(model: str, *, rewards: Sequence[str], device: str, solver: str | None) -> FKSteeringPipeline:
    from fk_reward.devices import resolve_device  # noqa: PLC0415 (only the command has a device to name)
    from fk_reward.pipelines import FKSteeringPipeline  # noqa: PLC0415 (slow to import)
    from fk_reward.pipelines.schedulers import Solver  # noqa: PLC0415

    composed = " + ".join((*(name for name in rewards if name != VERIFIER), VERIFIER))
    chosen = solver or Solver(scheduler=DPMSolverMultistepScheduler, num_inference_steps=20)
    pipe = FKSteeringPipeline.from_pretrained(model, reward=composed, solver=chosen).to(resolve_device(device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    run_script(main)
