"""Measures a model of few steps: plain, best of N, a search over starts and FK steering, at equal calls of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts
from diffusers import LCMScheduler

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.cache_comparison import compared
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.geneval.suites import find_suite
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, interval_text, show_table, write_json
from fk_reward.benchmarks.statistics import Ends
from fk_reward.benchmarks.task import Judge, Task, TaskOptions
from fk_reward.durable_files import read_json
from fk_reward.pipelines import Solver
from fk_reward.search import BestOfN, FKSteeringConfig, NoiseSearch, SearchConfig


def methods(num_steps: int, budget: int) -> dict[str, SearchConfig]:
    """Each costs at most `budget` sample steps of a prompt, but for the plain image; with one step nothing is steered.

    Example:
        >>> list(methods(1, 50)), methods(2, 50)["best of N"].num_particles
        (['plain', 'best of N', 'noise search'], 25)
        >>> methods(4, 50)["noise search"].num_rounds  # of 4 particles: 12 images, as best of N
        3
    """
    number = budget // num_steps
    sizes = range(1, max(2, min(5, number // 2) + 1))
    particles = max(sizes, key=lambda size: (number // size * size, size))  # rounds that leave nothing over
    found: dict[str, SearchConfig] = {
        "plain": BestOfN(num_particles=1),
        "best of N": BestOfN(num_particles=number),
        "noise search": NoiseSearch(num_particles=particles, num_rounds=number // particles),
    }
    return found | ({"FK": FKSteeringConfig(num_particles=number)} if num_steps > 1 else {})


def draw(pipe: FKSteeringPipeline, prompts: Sequence[str], search: SearchConfig, seed: int) -> tuple[Any, Any, int]:
    """The best image of each prompt, its reward, and the sample steps of all of them."""
    images, rewards, steps = [], [], 0
    for place, prompt in enumerate(prompts):
        generators = particle_generators(seed, [place], search.num_particles)
        out = pipe(prompt, search=search, generator=generators)
        images.append(out.images)
        rewards.append(out.rewards[0].tolist())
        steps += out.trace.cost.sample_steps
    return images, rewards, steps


def measured(
    pipe: FKSteeringPipeline, task: Task[Any], judge: Judge, *, num_steps: int, budget: int, seed: int
) -> dict[str, Any]:
    """Figures of each method with so many steps."""
    prompts = [sample["prompt"] for sample in task.samples]
    pipe.solver = Solver(scheduler=LCMScheduler, num_inference_steps=num_steps, guidance_scale=1.0)
    drawn = {name: draw(pipe, prompts, search, seed) for name, search in methods(num_steps, budget).items()}
    first = {"best of N": drawn["best of N"], **drawn}  # what the others are compared with
    figures = compared({name: one[:2] for name, one in first.items()}, task.samples, judge)
    return {name: {**figures[name], "sample_steps": one[2] / len(prompts)} for name, one in drawn.items()}


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str | Path = "shapes-sd-lcm",
    reward: str = "shapes-llava-reward-alignment",
    suite: str = "shapes",
    num_prompts: int = 300,
    num_steps: tuple[int, ...] = (1, 2, 4, 8),
    budget: int = 50,
    seed: int = 0,
    output: Path = Path("runs/few_steps.json"),
) -> None:
    """Writes accuracies by the verifier and rewards, with 95 % intervals over prompts, and prints a table.

    Gains are paired differences from best of N with as many steps. Numbers of steps that the file has already, with the
    same settings, are not measured again; two processes write two files.
    """
    settings = {"model": str(model), "reward": reward, "suite": suite, "num_prompts": num_prompts, "budget": budget}
    report = _known(output, settings | {"seed": seed})
    pipe = FKSteeringPipeline.from_pretrained(str(model), reward=reward)
    pipe.set_progress_bar_config(disable=True)
    task = find_suite(suite).task(TaskOptions(num_prompts=num_prompts))
    judge = task.judge("cpu")
    for steps in num_steps:
        if str(steps) not in report:
            report[str(steps)] = measured(pipe, task, judge, num_steps=steps, budget=budget, seed=seed)
            write_json(output, settings | {"seed": seed, "num_steps": report})
    rows = [
        {
            "steps": steps,
            "method": name,
            "calls": found["sample_steps"],
            **{key: _ends(key, found[key]) for key in _FIGURES},
        }
        for steps in num_steps
        for name, found in report[str(steps)].items()
    ]
    show_table(f"{model}, {num_prompts} prompts, {len(set(s['prompt'] for s in task.samples))} distinct", COLUMNS, rows)


_FIGURES = ("accuracy", "accuracy_gain", "reward", "reward_gain")
COLUMNS = (
    Column("steps", style="{:d}"),
    Column("method"),
    Column("calls", "generator calls", "{:.0f}"),
    Column("accuracy", "verifier [95 %]"),
    Column("accuracy_gain", "minus best of N [95 %]"),
    Column("reward", "reward [95 %]"),
    Column("reward_gain", "minus best of N [95 %]"),
)


def _known(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the file has already, by the number of steps."""
    if not output.exists():
        return {}
    found = read_json(output, remedy="Name another file.")
    report: dict[str, Any] = found.pop("num_steps")
    if found != settings:
        raise ValueError(f"{output} was measured with {found}, and {settings} was asked for: name another file.")
    return report


def _ends(name: str, found: Ends | None) -> str | None:
    return None if found is None else interval_text(found, CHANGE if name.endswith("_gain") else RANGE)


if __name__ == "__main__":
    cyclopts.run(main)
