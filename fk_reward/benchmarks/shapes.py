"""What does steering bring? Verifier accuracy by task of one picture, best of K, and K steered particles."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from torch import nn

from fk_reward.benchmarks.option_lists import parse_integers
from fk_reward.benchmarks.reports import show_table, write_json
from fk_reward.benchmarks.result_store import ResultStore
from fk_reward.benchmarks.shapes_report import (
    ACCURACY_COLUMNS,
    DIFFERENCE_COLUMNS,
    POPULATION_COLUMNS,
    accuracy_rows,
    difference_rows,
    markdown_report,
    summarize,
)
from fk_reward.benchmarks.shapes_runs import ShapesSettings, run_missing
from fk_reward.benchmarks.weights_digest import weights_digest
from fk_reward.config import FKSteeringConfig, parse_reward_scale

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline


def show_report(store: ResultStore) -> dict[str, Any]:
    """Print the tables of all results, write `shapes.json` and `shapes.md` beside them, return the summary."""
    summary = summarize(store.load())
    title = "{model}, {reward}, {num_prompts} held-out prompts, {num_seeds} seed(s)".format(**store.settings)
    show_table(f"Accuracy by the verifier: {title}", ACCURACY_COLUMNS, accuracy_rows(summary))
    show_table("Paired differences of accuracy", DIFFERENCE_COLUMNS, difference_rows(summary))
    show_table("Populations and cost, per prompt", POPULATION_COLUMNS, summary["methods"])
    write_json(store.folder / "shapes.json", {"settings": store.settings, **summary})
    (store.folder / "shapes.md").write_text(f"{title}\n\n{markdown_report(summary)}", encoding="utf-8")
    return summary


def load_pipeline(settings: ShapesSettings, device: str) -> FKSteeringPipeline:
    """Model and reward of the settings, without progress bars."""
    from fk_reward.pipelines import FKSteeringPipeline  # noqa: PLC0415 (slow to import, not needed for a report)

    pipe = FKSteeringPipeline.from_pretrained(settings.model, reward=settings.reward).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_store(folder: Path, settings: ShapesSettings, pipe: FKSteeringPipeline) -> ResultStore:
    """The store of these settings and these very weights, of the model and of the reward.

    Raises:
        ValueError: when the folder holds results of others.
    """
    parts = [*pipe.components.values(), *vars(pipe.reward).values()]
    digest = weights_digest(part for part in parts if isinstance(part, nn.Module))
    return ResultStore(folder, settings.to_dict() | {"weights": digest})


def generate(
    pipe: FKSteeringPipeline, settings: ShapesSettings, store: ResultStore, *, shard: tuple[int, int], batch_size: int
) -> None:
    """Run whatever the store does not have, with a line on the terminal after each call."""
    started = time.perf_counter()
    for population, done, todo in run_missing(pipe, settings, store, shard=shard, batch_size=batch_size):
        kind = "steered" if population.steered else "plain"
        elapsed, size = time.perf_counter() - started, population.num_particles
        typer.echo(f"{elapsed:7.0f} s  seed {population.seed}, {kind}, K = {size}: {done}/{todo} prompts")


def parse_shard(text: str) -> tuple[int, int]:
    """Index and number of processes, as typed: `"0/2"`.

    Raises:
        typer.BadParameter: for anything else.

    Example:
        >>> parse_shard("1/2")
        (1, 2)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise typer.BadParameter(f"shard should be i/n with 0 <= i < n, got {text!r}.")
    return int(match[1]), int(match[2])


def _steering(options: Mapping[str, Any], reward_scale: str) -> FKSteeringConfig:
    try:
        return FKSteeringConfig(reward_scale=parse_reward_scale(reward_scale), **options)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    reward: Annotated[str, typer.Option(help="The reward that steers and selects.")] = "shapes-clipscore",
    model: Annotated[str, typer.Option(help="A model of the shapes world, by name or folder.")] = "shapes-sd",
    num_prompts: Annotated[int, typer.Option(help="Held-out prompts, the six tasks in turn.", min=1)] = 300,
    num_particles: Annotated[str, typer.Option(help="Values of K, separated by commas.")] = "2,4,8",
    steps: Annotated[int, typer.Option(help="Scheduler steps.", min=2)] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 3.0,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0)] = 0,
    num_seeds: Annotated[int, typer.Option(help="Runs of each prompt.", min=1)] = 1,
    potential: Annotated[str, typer.Option(help="difference, max, sum or immediate.")] = "max",
    reward_scale: Annotated[str, typer.Option(help="Lambda, or auto.")] = "10",
    resample_start: Annotated[float, typer.Option(help="First scoring step, as a fraction.")] = 0.2,
    resample_stop: Annotated[float, typer.Option(help="Last scoring step, as a fraction.")] = 0.8,
    num_resamples: Annotated[int, typer.Option(help="Number of scoring steps.")] = 4,
    ess_threshold: Annotated[float, typer.Option(help="Resample below this fraction of K.")] = 0.5,
    resampling: Annotated[str, typer.Option(help="Resampling scheme.")] = "systematic",
    target_ess: Annotated[float, typer.Option(help="With lambda auto: the ESS aimed at.")] = 0.5,
    batch_size: Annotated[int, typer.Option(help="Particles a call.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shard: Annotated[str, typer.Option(help="i/n: this process takes every n-th prompt.")] = "0/1",
    report: Annotated[bool, typer.Option("--report", help="Only report what is in the folder.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results; an unfinished one is resumed.")] = Path(
        "results/shapes"
    ),
) -> None:
    """Compare one picture, best of K and steering at equal numbers of denoiser calls, on the same prompts and seeds."""
    store, part = ResultStore(out) if report else None, parse_shard(shard)
    if store is None:
        options = {"potential": potential, "resampling": resampling, "ess_threshold": ess_threshold}
        options |= {"resample_start": resample_start, "resample_stop": resample_stop, "num_resamples": num_resamples}
        settings = ShapesSettings(
            model=model,
            reward=reward,
            num_prompts=num_prompts,
            num_particles=parse_integers("num_particles", num_particles),
            num_steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            num_seeds=num_seeds,
            steering=_steering(options | {"target_ess": target_ess}, reward_scale),
        )
        pipe = load_pipeline(settings, device)
        store = open_store(out, settings, pipe)
        generate(pipe, settings, store, shard=part, batch_size=batch_size)
    if report or part[1] == 1:
        show_report(store)
        typer.echo(f"Results: {out / 'shapes.json'}, {out / 'shapes.md'}")


if __name__ == "__main__":
    typer.run(main)
