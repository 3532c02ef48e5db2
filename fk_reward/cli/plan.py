"""`fk-reward plan`: memory and time of a steered call, before anything is downloaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fk_reward.cli.errors import clean_errors
from fk_reward.cli.loading import DTYPES, default_guidance

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
    steps: Annotated[int, typer.Option(help="Scheduler steps.", min=1)] = 50,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance.", show_default="3 for shapes-sd, else the pipeline's own")
    ] = None,
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
    with clean_errors():
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
            guidance_scale=default_guidance(model, guidance_scale).get("guidance_scale"),
        )
        checked = _checked(result) if check else None
    if as_json:
        typer.echo(json.dumps(result.to_dict() | ({} if checked is None else {"check": vars(checked)}), indent=2))
    else:
        _show(result, checked)
    if not result.fits:
        raise typer.Exit(code=1)


def _checked(result: Plan) -> Check:
    from fk_reward.planning.check import check_plan

    return check_plan(result)


def _show(result: Plan, checked: Check | None) -> None:
    from fk_reward.benchmarks.reports import Column, show_table

    columns = (
        Column("phase"),
        Column("batch_size", "at once", "{:d}"),
        *(Column(key, f"{key}, GB", "{:.2f}") for key in ("weights", "kept", "activations", "peak", "needed")),
    )
    title = f"{result.model} in {result.dtype} with {result.reward}, K = {result.num_particles}, {result.steps} steps"
    show_table(title, columns, [_in_gigabytes(phase) for phase in result.to_dict()["phases"]])
    for line in (*_sentences(result), *result.advice, *_check_sentences(checked)):
        typer.echo(line)


def _in_gigabytes(phase: dict[str, Any]) -> dict[str, Any]:
    return {key: value / 1e9 if key not in ("phase", "batch_size") else value for key, value in phase.items()}


def _sentences(result: Plan) -> list[str]:
    from fk_reward.planning.sizes import gigabytes

    limit = "" if result.memory is None else f" of {gigabytes(result.memory)}"
    work = sum(result.flops.values()) / 1e12
    time = "give --tflops for the time" if result.seconds is None else f"about {result.seconds:.3g} s, an estimate"
    return [
        f"Peak of PyTorch's allocator: {gigabytes(result.peak)}. Needed on the GPU: {gigabytes(result.needed)}{limit}.",
        f"An image (best of K): {work:,.1f} TFLOP, {result.num_scorings} x K decoded and scored; {time}.",
    ]


def _check_sentences(checked: Check | None) -> list[str]:
    if checked is None:
        return []
    from fk_reward.planning.sizes import gigabytes

    return [
        f"Measured: {gigabytes(checked.measured)} at the peak (predicted {100 * checked.error:+.1f} %), "
        f"{checked.seconds:.3g} s an image."
    ]
