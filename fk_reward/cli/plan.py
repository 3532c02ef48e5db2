"""`fk-reward plan`: memory and time of a steered call, before anything is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import (
    MEMORY,
    MODEL,
    OUTPUT,
    SEARCH,
    FieldOptions,
    ModelOption,
    RewardOption,
    SamplingOptions,
    SearchOptions,
)
from fk_reward.devices import DTYPES
from fk_reward.terminal import say, write_document
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.planning import Plan
    from fk_reward.planning.check import Check


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The call that is planned.

    Attributes:
        model: Text-to-image model: sd-2.1, sd-2.1-base, sdxl (no files needed), shapes-sd or a folder.
        reward: Reward of known size, or a composition of such.
        search: who goes on.
        budget: Sample steps of a prompt, at most: sets the sizes of the search; those of its settings if not given.
        lookahead: What the reward is asked about on the way: the predicted image of the step (1), of m coarse steps
            from there (m), or of a consistency LoRA (adapter).
        sampling: how a trajectory is run.
        dtype: Floating type of the pipeline: float32, float16 or bfloat16.
        memory: Memory of the GPU, such as 24GB (10^9 bytes) or 24GiB; no limit if not given.
        height: Height of the images in pixels; the model's if not given.
        width: Width of the images in pixels; the model's if not given.
        tflops: Speed of the GPU in 10^12 operations a second: 400, or float16=400,float32=40; measured if not given.
        check: Make the call on the GPU at hand, with random weights, and compare.
        as_json: Write JSON.
    """

    model: ModelOption = "sdxl"
    reward: RewardOption = "llava-reward-alignment"
    search: SearchOptions
    budget: Annotated[int | None, Parameter(group=SEARCH)] = None
    lookahead: Annotated[int | str, Parameter(group=SEARCH)] = 1
    sampling: SamplingOptions
    dtype: Annotated[str, Parameter(group=MODEL)] = "float16"
    memory: Annotated[str | None, Parameter(group=MEMORY)] = None
    height: Annotated[int | None, Parameter(group=MODEL)] = None
    width: Annotated[int | None, Parameter(group=MODEL)] = None
    tflops: Annotated[str | None, Parameter(group=MEMORY)] = None
    check: Annotated[bool, Parameter(group=OUTPUT)] = False
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES[1:]:
            raise ValueError(f"--dtype should be one of {', '.join(DTYPES[1:])}, got {self.dtype!r}.")
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                whole_number(f"--{name}", getattr(self, name), minimum=8)


def plan(*, options: Annotated[PlanOptions, FieldOptions(PlanOptions)]) -> None:
    """Predict memory and time of a steered call and choose settings that fit; exit code 1 where none does."""
    from fk_reward.planning import plan as make_plan

    sampling = options.sampling
    result = make_plan(
        options.model,
        reward=options.reward,
        memory=options.memory,
        height=options.height,
        width=options.width,
        dtype=options.dtype,
        steps=sampling.num_inference_steps,
        tflops=options.tflops,
        guidance_scale=_guidance(options.model, sampling.guidance_scale, sampling.solver),
        preview=sampling.preview,
        solver=sampling.solver,
        search=options.search,
        budget=options.budget,
        lookahead=options.lookahead,
    )
    checked = _checked(result) if options.check else None
    if options.as_json:
        write_document(json.dumps(result.to_dict() | ({} if checked is None else {"check": vars(checked)}), indent=2))
    else:
        _show(result, checked)
    if not result.fits:
        raise SystemExit(1)


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
        say(line)


def _title(result: Plan) -> str:
    """What was asked, in a line."""
    from fk_reward.search.registry import search_name

    finished = result.population.finished
    particles = f"{search_name(result.search)}, K = {result.num_particles}"
    particles += f", at most {result.max_particles}" if result.max_particles > result.num_particles else ""
    particles += f" to {finished}" if finished < result.num_particles else ""
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
        f"An image (best of K): {work:,.1f} TFLOP, {_num_images(result)} decoded and scored; {time}.",
    ]


def _num_images(result: Plan) -> str:
    """How many are decoded, and by what."""
    course = result.population
    on_the_way, guided = sum(course.scorings) + sum(course.guided), sum(course.guided)
    backward = f" ({guided} with a backward pass)" if guided else ""
    if result.preview is None or not on_the_way:
        return f"{course.num_scored} images{backward}"
    return f"{on_the_way} previews{backward} and {course.finished} finished images"


def _check_sentences(checked: Check | None) -> list[str]:
    if checked is None:
        return []
    from fk_reward.planning.memory import gigabytes

    return [
        f"Measured: {gigabytes(checked.measured)} at the peak (predicted {100 * checked.error:+.1f} %), "
        f"{checked.seconds:.3g} s an image."
    ]
