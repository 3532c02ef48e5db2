"""What does steering bring? Verifier accuracy by task of one picture, best of K, and K steered particles."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fk_reward.benchmarks.report import markdown_report, show_table, write_json
from fk_reward.benchmarks.shapes_report import report_tables
from fk_reward.benchmarks.shapes_runs import PROMPT_LISTS, RESULT_KEY, Population, ShapesSettings, run_missing
from fk_reward.benchmarks.shapes_summary import summarize
from fk_reward.benchmarks.store import ResultStore, weights_digest
from fk_reward.cli import sampler_options, trajectory_options
from fk_reward.devices import resolve_device
from fk_reward.durable_files import write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import NAMED_PATH, hold_folder
from fk_reward.rewards import Reward, load_reward
from fk_reward.search.feynman_kac import FKSteeringConfig, parse_reward_scale
from fk_reward.value_checks import parse_integers, parse_shard

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline

DEFAULT_STEPS, DEFAULT_GUIDANCE = 50, 3.0


def show_report(store: ResultStore) -> dict[str, Any]:
    """Print the tables of all results, write `shapes.json` and `shapes.md` beside them, return the summary."""
    summary = summarize(store.load(RESULT_KEY), store.settings["rewards"])
    tables = report_tables(summary)
    title = _title(store.settings)
    typer.echo(title)
    for table in tables:
        show_table(*table)
    write_json(store.folder / "shapes.json", {"settings": store.settings, **summary})
    write_whole(store.folder / "shapes.md", f"{title}\n\n{markdown_report(tables)}")
    return summary


def load_models(settings: ShapesSettings, device: str) -> tuple[FKSteeringPipeline, dict[str, Reward]]:
    """The pipeline with its solver and preview, without progress bars, and the rewards by name, checked to steer."""
    from fk_reward.pipelines import FKSteeringPipeline  # noqa: PLC0415 (slow to import, not needed for a report)
    from fk_reward.pipelines.schedulers import resolve_solver  # noqa: PLC0415 (the same)

    rewards = {name: load_reward(name).to(device) for name in settings.rewards}
    pipe = FKSteeringPipeline.from_pretrained(settings.model, reward=rewards[settings.rewards[0]]).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe.solver, pipe.preview = resolve_solver(settings.solver), settings.preview
    for reward in rewards.values():
        pipe.reward = reward
    return pipe, rewards


def open_store(
    folder: Path, settings: ShapesSettings, *, pipe: FKSteeringPipeline, rewards: Mapping[str, Reward]
) -> ResultStore:
    """The store of these settings and these very weights, of the model, its preview and all rewards.

    Raises:
        ValueError: when the folder holds results of others.
    """
    digest = weights_digest([dict(pipe.components), pipe.preview, rewards])
    return ResultStore(folder, settings.to_dict() | {"weights": digest})


def generate(
    pipe: FKSteeringPipeline,
    settings: ShapesSettings,
    *,
    rewards: Mapping[str, Reward],
    store: ResultStore,
    shard: tuple[int, int],
    batch_size: int,
    populations: Sequence[Population] | None = None,
) -> None:
    """Run whatever the store does not have, with a line on the terminal after each call. Arguments: `run_missing`."""
    started = time.perf_counter()
    options: dict[str, Any] = {"shard": shard, "batch_size": batch_size, "populations": populations}
    for population, done, todo in run_missing(pipe, settings, rewards=rewards, store=store, **options):
        kind = "plain" if population.reward is None else f"steered by {population.reward}"
        elapsed, size = time.perf_counter() - started, population.num_particles
        typer.echo(f"{elapsed:7.0f} s  seed {population.seed}, {kind}, K = {size}: {done}/{todo} prompts")


def _title(settings: Mapping[str, Any]) -> str:
    title = "{model}, {num_prompts} prompts ({prompts}), {num_seeds} seed(s)".format(**settings)
    chosen = [f"{name} {settings[name]}" for name in ("solver", "preview") if settings.get(name)]
    return ", ".join([title, *chosen])


def trajectory(solver: str | None, steps: int | None, guidance_scale: float | None) -> dict[str, Any]:
    """Steps and guidance: what was typed, else the solver's, else the defaults of the benchmark."""
    from fk_reward.pipelines.schedulers import resolve_solver  # noqa: PLC0415 (slow to import, not needed for a report)

    try:
        chosen = resolve_solver(solver)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if chosen is not None:
        steps = chosen.num_inference_steps if steps is None else steps
        guidance_scale = chosen.guidance_scale if guidance_scale is None else guidance_scale
    return {
        "solver": solver,
        "num_steps": DEFAULT_STEPS if steps is None else steps,
        "guidance_scale": DEFAULT_GUIDANCE if guidance_scale is None else guidance_scale,
    }


def steering_config(options: Mapping[str, Any], reward_scale: str) -> FKSteeringConfig:
    """Settings of the sampler as typed; a `typer.BadParameter` where they are none."""
    try:
        return FKSteeringConfig(reward_scale=parse_reward_scale(reward_scale), **options)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def one_of(name: str, text: str, choices: Sequence[str]) -> str:
    """What was typed for an option; a `typer.BadParameter` where it is not among the choices."""
    if text not in choices:
        raise typer.BadParameter(f"{name} should be one of {', '.join(choices)}, got {text!r}.")
    return text


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    reward: Annotated[
        list[str],
        typer.Option(help="Steers and selects; may be repeated, the others are compared with the first."),
    ] = [DEFAULT_EMBEDDED_REWARD],  # noqa: B006 (typer copies it)
    model: Annotated[str, typer.Option(help="A model of the shapes world, by name or folder.")] = "shapes-sd",
    prompts: Annotated[
        str,
        typer.Option(
            help="benchmark, or sign: prompts of a cross, which may come out as the forbidden sign; validation and "
            "sign-validation: the same of training prompts, to choose settings by."
        ),
    ] = "benchmark",
    num_prompts: Annotated[int, typer.Option(help="Prompts, the tasks in turn.", min=1)] = 300,
    num_particles: Annotated[str, typer.Option(help="Values of K, separated by commas.")] = "2,4,8",
    solver: Annotated[str | None, trajectory_options.SOLVER] = None,
    steps: Annotated[
        int | None, typer.Option(help="Scheduler steps.", min=2, show_default="the solver's, or 50")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance.", show_default="the solver's, or 3")
    ] = None,
    preview: Annotated[
        str | None, typer.Option(help="Decodes at the scoring steps: shapes-preview, vae/2, a folder, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0)] = 0,
    num_seeds: Annotated[int, typer.Option(help="Runs of each prompt.", min=1)] = 1,
    potential: Annotated[str, sampler_options.POTENTIAL] = "max",
    reward_scale: Annotated[str, sampler_options.REWARD_SCALE] = "10",
    resample_start: Annotated[float, sampler_options.RESAMPLE_START] = 0.2,
    resample_stop: Annotated[float, sampler_options.RESAMPLE_STOP] = 0.8,
    num_resamples: Annotated[int, sampler_options.NUM_RESAMPLES] = 4,
    ess_threshold: Annotated[float, sampler_options.ESS_THRESHOLD] = 0.5,
    resampling: Annotated[str, sampler_options.RESAMPLING] = "systematic",
    target_ess: Annotated[float, sampler_options.TARGET_ESS] = 0.5,
    final_particles: Annotated[int | None, sampler_options.FINAL_PARTICLES] = None,
    stop_reward: Annotated[float | None, sampler_options.STOP_REWARD] = None,
    batch_size: Annotated[int, typer.Option(help="Particles a call.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    shard: Annotated[str, typer.Option(help="i/n: this process takes every n-th prompt.")] = "0/1",
    report: Annotated[bool, typer.Option("--report", help="Only report what is in the folder.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of the results; an unfinished one is resumed.", **NAMED_PATH)
    ] = Path("results/shapes"),
) -> None:
    """Compare one picture, best of K and steering at equal numbers of denoiser calls, on the same prompts and seeds."""
    part = parse_shard(shard)
    if not report:
        options = {"potential": potential, "resampling": resampling, "ess_threshold": ess_threshold}
        options |= {"resample_start": resample_start, "resample_stop": resample_stop, "num_resamples": num_resamples}
        options |= {"target_ess": target_ess, "final_particles": final_particles, "stop_reward": stop_reward}
        sizes = parse_integers("num_particles", num_particles)
        settings = ShapesSettings(
            model=model,
            rewards=tuple(dict.fromkeys(reward)),
            prompts=one_of("prompts", prompts, list(PROMPT_LISTS)),
            num_prompts=num_prompts,
            num_particles=sizes,
            seed=seed,
            num_seeds=num_seeds,
            steering=steering_config(
                options | {"num_particles": min((size for size in sizes if size > 1), default=1)}, reward_scale
            ),
            preview=preview,
            **trajectory(solver, steps, guidance_scale),
        )
        with hold_folder(out, share=part):
            pipe, rewards = load_models(settings, resolve_device(device))
            store = open_store(out, settings, pipe=pipe, rewards=rewards)
            generate(pipe, settings, rewards=rewards, store=store, shard=part, batch_size=batch_size)
    if report or part[1] == 1:
        show_report(ResultStore(out))
        typer.echo(f"Results: {out / 'shapes.json'}, {out / 'shapes.md'}")
