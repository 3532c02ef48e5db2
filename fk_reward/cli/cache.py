"""`fk-reward cache evolve`, `apply` and `show`: caching schedules of a denoiser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fk_reward.cli.options import MODEL, SEARCH, FieldOptions, OutOption, PlacementOptions
from fk_reward.cli.record import chosen_samples
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.durable_files import read_json, write_whole
from fk_reward.output_folder import hold_folder
from fk_reward.terminal import TextTable, say, write_document

if TYPE_CHECKING:
    from fk_reward.benchmarks.cache_evolution import Evaluated
    from fk_reward.benchmarks.cache_settings import CachedDrawing, EvolutionSettings

    DrawingOptions = CachedDrawing
    EvolutionOptions = EvolutionSettings
else:
    DrawingOptions = Annotated[Any, FieldOptions("fk_reward.benchmarks.cache_settings:CachedDrawing", MODEL)]
    EvolutionOptions = Annotated[Any, FieldOptions("fk_reward.benchmarks.cache_settings:EvolutionSettings", SEARCH)]

SETTINGS, FRONT = "settings.json", "front.json"
_MARKS = {True: "█", False: "·"}


def cache_evolve(  # noqa: PLR0913 (one parameter for each option)
    prompts: list[str] | None = None,
    /,
    *,
    out: OutOption,
    prompts_from: Path | None = None,
    suite: str | None = None,
    num_prompts: int | None = None,
    drawing: DrawingOptions,
    evolution: EvolutionOptions,
    placement: PlacementOptions,
) -> None:
    """Evolve caching schedules of a denoiser, by NSGA-II: few operations, high reward on some prompts.

    Writes every evaluation to evaluations.jsonl as it is made, and at the end front.json and the schedules of the front
    and the every-k schedules as ECAD's JSON (front/, every-k/). Started again, the command goes on, also with more
    generations. Needs pymoo: pip install 'fk-reward[cache]'.

    Args:
        prompts: One or more prompts, each in quotes.
        out: Folder of the results.
        prompts_from: Text file with a prompt a line, in place of prompts.
        suite: Prompts of a suite of fk-reward geneval in place of prompts: official, shapes, shapes-validation, ...
        num_prompts: With --suite shapes...: how many.
        drawing: What is drawn by each schedule.
        evolution: How long and how broadly is searched.
        placement: Device and floating type.
    """
    samples, _ = chosen_samples(prompts or (), prompts_from, suite, num_prompts)
    texts = [sample["prompt"] for sample in samples]
    from fk_reward.benchmarks.cache_comparison import CachedImages
    from fk_reward.benchmarks.cache_evolution import Evaluations, evolve, require_pymoo, summary

    with hold_folder(out) as folder:
        require_pymoo()
        place = resolve_device(placement.device)
        drawn = CachedImages.load(drawing, device=place, dtype=resolve_dtype(placement.dtype, place))
        asked = {"prompts": texts, **drawn.describe(), "population_size": evolution.population_size}
        _same_settings(folder, asked | {"evolution_seed": evolution.evolution_seed})
        costs = drawn.costs()
        evolved: list[Evaluated] = []
        generations = evolve(
            lambda schedule: drawn.mean_reward(schedule, texts),
            costs,
            num_steps=drawn.arguments["num_inference_steps"],
            settings=evolution,
            evaluations=Evaluations.open(folder),
        )
        for number, evolved in enumerate(generations):
            say(_progress(number, evolution.num_generations, evolved))
        _write_front(folder, evolved, summary(evolved, costs))
    say(f"Next: fk-reward cache apply {shlex.quote(str(out))}/front/*.json --suite shapes --out ...")


def _progress(number: int, of: int, evolved: Sequence[Evaluated]) -> str:
    from fk_reward.benchmarks.cache_evolution import front

    best = front(evolved)
    ends = " to ".join(f"{one.schedule.metrics['share']:.0%} ({one.reward:.3f})" for one in (best[0], best[-1]))
    return (
        f"Generation {number + 1} of {of}: {len(evolved)} schedules drawn, {len(best)} on the front, from {ends} of "
        "the operations (mean reward)."
    )


def _same_settings(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse to go on with evaluations that were made of something else."""
    asked = json.loads(json.dumps(asked, default=str))
    path = folder / SETTINGS
    if not path.exists():
        write_whole(path, json.dumps(asked, indent=2) + "\n")
        return
    before = read_json(path, remedy="Choose another --out.")
    changed = sorted(name for name in {*before, *asked} if before.get(name) != asked.get(name))
    if changed:
        raise ValueError(
            f"{folder} holds evaluations with another {changed[0]}: {before.get(changed[0])!r}, now "
            f"{asked.get(changed[0])!r}. Choose another --out, or the same settings to go on."
        )


def _write_front(folder: Path, evolved: Sequence[Evaluated], rows: Sequence[Mapping[str, Any]]) -> None:
    schedules = {one.schedule.name: one.schedule for one in evolved}
    for path in [*folder.glob("front/*.json"), *folder.glob("every-k/*.json")]:
        path.unlink()  # of a run with fewer generations: what was on the front may be beaten now
    text = TextTable("The front (*) and the every-k schedules")
    text.add_column("schedule")
    for heading in ("operations", "reward", "front"):
        text.add_column(heading, right=True)
    for place, row in enumerate(rows):
        kind = "front" if row["front"] else "every-k"
        schedules[row["name"]].save(folder / kind / f"{place:02}-{row['name']}.json")
        mark = "*" if row["front"] else ""
        text.add_row(row["name"], f"{row['share']:.1%}", f"{row['reward']:.4f}", mark)
    write_whole(folder / FRONT, json.dumps(list(rows), indent=2) + "\n")
    text.print()


def cache_apply(  # noqa: PLR0913 (one parameter for each option)
    schedules: list[Path],
    /,
    *,
    out: OutOption,
    prompt: list[str] | None = None,
    prompts_from: Path | None = None,
    suite: str | None = None,
    num_prompts: int | None = None,
    drawing: DrawingOptions,
    placement: PlacementOptions,
) -> None:
    """Draw by caching schedules and without one, from the same noise, and compare.

    Writes the images (NAME/000-00.png) and comparison.json: reward, verdicts of the suite's judge, and their paired
    differences with 95 % intervals over prompts.

    Args:
        schedules: Files of fk-reward cache evolve, or of ECAD.
        out: Folder of the results.
        prompt: A prompt; may be repeated.
        prompts_from: Text file with a prompt a line, in place of prompts.
        suite: Prompts and judge of a suite of fk-reward geneval: shapes, shapes-validation, official, ...
        num_prompts: With --suite shapes...: how many.
        drawing: What is drawn by each schedule.
        placement: Device and floating type.
    """
    samples, load_judge = chosen_samples(prompt or (), prompts_from, suite, num_prompts)
    from fk_reward.benchmarks.cache_comparison import UNCACHED, CachedImages, compared, save_images, shares_of, table
    from fk_reward.pipelines.cache_schedule import CacheSchedule

    with hold_folder(out) as folder:
        loaded = _named(map(CacheSchedule.load, schedules))
        place = resolve_device(placement.device)
        drawn = CachedImages.load(drawing, device=place, dtype=resolve_dtype(placement.dtype, place))
        judge = None if load_judge is None else load_judge(place)
        methods: dict[str, Any] = {UNCACHED: None, **loaded}
        results: dict[str, Any] = {}
        for name, schedule in methods.items():
            results[name] = drawn.draw(schedule, [sample["prompt"] for sample in samples])
            save_images(folder / name.replace(" ", "-"), results[name][0])
        shares = shares_of(methods, drawn.costs())
        figures = compared(results, samples, judge)
        report = {name: {"share": shares[name], **figures[name]} for name in methods}
        write_whole(folder / "comparison.json", json.dumps(asdict(drawing) | {"methods": report}, indent=2) + "\n")
        write_document("\n".join(table(figures, shares)) + "\n")


def _named(schedules: Iterable[Any]) -> dict[str, Any]:
    """By their names, with a number behind one that was there before."""
    named: dict[str, Any] = {}
    for schedule in schedules:
        name = Path(schedule.name).name or "schedule"
        named[name if name not in named else f"{name}-{len(named)}"] = schedule
    return named


def cache_show(schedule: Path, /) -> None:
    """Show a caching schedule: a column for each step, a row for each component, full where it is computed.

    Args:
        schedule: File of fk-reward cache evolve, or of ECAD.
    """
    from fk_reward.pipelines.cache_schedule import CacheSchedule

    loaded = CacheSchedule.load(schedule)
    width = max(len(f"{block} {name}") for block, name in loaded.components)
    lines = [
        f"{block + ' ' + name:<{width}}  {''.join(_MARKS[row[column]] for row in loaded.steps)}"
        for column, (block, name) in enumerate(loaded.components)
    ]
    counts = f"{loaded.num_steps} steps, {len(loaded.components)} components, {loaded.share:.1%} of them computed"
    metrics = "".join(f", {name} {value:g}" for name, value in loaded.metrics.items() if isinstance(value, int | float))
    write_document("\n".join([f"{loaded.name}: {counts}{metrics}", *lines]) + "\n")
