"""`fk-reward plan`: memory and time of a steered call, before anything is downloaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fk_reward.cli import sampler_options, trajectory_options
from fk_reward.devices import DTYPES

if TYPE_CHECKING:
    from fk_reward.planning import Plan
    from fk_reward.planning.check import Check


def plan(  # noqa: PLR0913 (one parameter for each option)
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="sd-2.1, sd-2.1-base, sdxl (no files needed), shapes-sd or a folder.")
    ] = "sdxl",
    reward: Annotated[
        str, typer.Option("--reward", "-r", help="A reward of known size, or a composition of such.")
    ] = "llava-reward-alignment",
    num_particles: Annotated[int, typer.Option("--num-particles", "-k", help="K, particles of a prompt.", min=1)] = 4,
    memory: Annotated[
        str | None, typer.Option(help="Of the GPU, such as 24GB (10^9 bytes) or 24GiB.", show_default="no limit")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's", min=8)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's", min=8)] = None,
    dtype: Annotated[str, typer.Option(help="Of the pipeline: float32, float16 or bfloat16.")] = "float16",
    solver: Annotated[str | None, trajectory_options.SOLVER] = None,
    steps: Annotated[int | None, trajectory_options.STEPS] = None,
    guidance_scale: Annotated[float | None, trajectory_options.GUIDANCE_SCALE] = None,
    preview: Annotated[str | None, trajectory_options.PREVIEW] = None,
    num_resamples: Annotated[int | None, sampler_options.NUM_RESAMPLES] = None,
    final_particles: Annotated[int | None, sampler_options.FINAL_PARTICLES] = None,
    tflops: Annotated[
        str | None,
        typer.Option(
            help="10^12 operations a second: 400, or float16=400,float32=40.", show_default="measured on a GPU"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Make the call on the GPU at hand, with random weights, and compare.")
    ] = False,
) -> None:
    """Predict memory and time of a steered call and choose settings that fit; exit code 1 where none does."""
    if dtype not in DTYPES[1:]:
        raise ValueError(f"--dtype should be one of {', '.join(DTYPES[1:])}, got {dtype!r}.")
    from fk_reward.planning import plan as make_plan

    result = make_plan(
        model,
        reward=reward,
        num_particles=num_particles,
        memory=memory,
        height=height,
        width=width,
        dtype=dtype,
        steps=steps,
        tflops=tflops,
        guidance_scale=_guidance(model, guidance_scale, solver),
        preview=preview,
        solver=solver,
        num_resamples=num_resamples,
        final_particles=final_particles,
    )
    checked = _checked(result) if check else None
    if as_json:
        typer.echo(json.dumps(result.to_dict() | ({} if checked is None else {"check": vars(checked)}), indent=2))
    else:
        _show(result, checked)
    if not result.fits:
        raise typer.Exit(code=1)


def _guidance(model: str, typed: float | None, solver: str | None) -> float | None:
    """What was typed, else the solver's, which is the plan's business, else what suits the embedded model."""
    from fk_reward.pipelines.loading import default_guidance
    from fk_reward.pipelines.schedulers import resolve_solver

    preset = resolve_solver(solver)
    if typed is None and preset is not None and preset.guidance_scale is not None:
        return None
    return default_guidance(model, typed).get("guidance_scale")


def _checked(result: Plan) -> Check:
    from fk_reward.planning.check import check_plan

    return check_plan(result)


def _show(result: Plan, checked: Check | None) -> None:
    from fk_reward.benchmarks.report import Column, show_table

    columns = (
        Column("phase"),
        Column("batch_size", "at once", "{:d}"),
        *(Column(key, f"{key}, GB", "{:.2f}") for key in ("weights", "kept", "activations", "peak", "needed")),
    )
    show_table(_title(result), columns, [_in_gigabytes(phase) for phase in result.to_dict()["phases"]])
    for line in (*_sentences(result), *result.advice, *_check_sentences(checked)):
        typer.echo(line)


def _title(result: Plan) -> str:
    """What was asked, in a line."""
    finished = result.population.finished
    particles = f"K = {result.num_particles}" + (f" to {finished}" if finished < result.num_particles else "")
    solved = "" if result.solver is None else f" of {result.solver}"
    preview = "" if result.preview is None else f", preview {result.preview}"
    return f"{result.model} in {result.dtype} with {result.reward}, {particles}, {result.steps} steps{solved}{preview}"


def _in_gigabytes(phase: dict[str, Any]) -> dict[str, Any]:
    return {key: value / 1e9 if key not in ("phase", "batch_size") else value for key, value in phase.items()}


def _sentences(result: Plan) -> list[str]:
    from fk_reward.planning.memory import gigabytes

    limit = "" if result.memory is None else f" of {gigabytes(result.memory)}"
    work = sum(result.flops.values()) / 1e12
    time = "give --tflops for the time" if result.seconds is None else f"about {result.seconds:.3g} s, an estimate"
    return [
        f"Peak of PyTorch's allocator: {gigabytes(result.peak)}. Needed on the GPU: {gigabytes(result.needed)}{limit}.",
        f"An image (best of K): {work:,.1f} TFLOP, {_images(result)} decoded and scored; {time}.",
    ]


def _images(result: Plan) -> str:
    """How many are decoded, and by what."""
    forecast = result.population
    if result.preview is None or not forecast.scorings:
        return f"{forecast.num_scored} images"
    return f"{sum(forecast.scorings)} previews and {forecast.finished} finished images"


def _check_sentences(checked: Check | None) -> list[str]:
    if checked is None:
        return []
    from fk_reward.planning.memory import gigabytes

    return [
        f"Measured: {gigabytes(checked.measured)} at the peak (predicted {100 * checked.error:+.1f} %), "
        f"{checked.seconds:.3g} s an image."
    ]
