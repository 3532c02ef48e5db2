"""What one `fk-reward generate` asks for, and how it is carried out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fk_reward.cli.generate_record import GenerateRecord
from fk_reward.durable_files import cosmetic, write_whole
from fk_reward.output_folder import hold_folder
from fk_reward.terminal import TextTable, say
from fk_reward.text import require_text

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline, Solver
    from fk_reward.pipelines.batching import BatchSizes
    from fk_reward.search.feynman_kac import FKSteeringConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """One `fk-reward generate`, as typed.

    Attributes:
        prompts: each becomes `images_per_prompt` images.
        out: folder for the results.
        model: name, hub id or folder.
        reward: name, or a composition of names.
        settings: fields of `FKSteeringConfig`, but for lambda.
        reward_scale: lambda, as text.
        images_per_prompt: how many of the K images are kept.
        solver: name of a solver, or None.
        steps: scheduler steps; None for the solver's.
        guidance_scale: None for the solver's, or the model's.
        preview: name of a preview, or None.
        seed: of the first particle of each prompt.
        device: see `resolve_device`.
        dtype: see `resolve_dtype`.
        batch_sizes: fields of `BatchSizes`, as text.
        reward_device: of the reward alone; None for `device`.
        compiled: whether to compile the blocks of model and reward.
        channels_last: whether to lay convolutions out with channels last.
        overwrite: whether to begin anew in a folder that holds something.
    """

    prompts: tuple[str, ...]
    out: Path
    model: str
    reward: str
    settings: Mapping[str, Any]
    reward_scale: str
    images_per_prompt: int
    solver: str | None
    steps: int | None
    guidance_scale: float | None
    preview: str | None
    seed: int
    device: str
    dtype: str
    batch_sizes: Mapping[str, str | None]
    reward_device: str | None
    compiled: bool
    channels_last: bool
    overwrite: bool

    def __post_init__(self) -> None:
        require_text(self.prompts, "prompts")  # before a model is loaded


def run_request(request: Request) -> None:
    """Make the images that are not there yet and write them, with `result.json` after each prompt.

    Raises:
        ValueError: settings that are none, an unknown name, a folder with results of other settings, ...
        OSError: a model or a reward that cannot be found or fetched, a folder that is not empty or is in use.
    """
    from fk_reward.pipelines.loading import call_arguments
    from fk_reward.pipelines.schedulers import resolve_solver

    steering, sizes, solver = _steering(request), _batch_sizes(request), resolve_solver(request.solver)
    asked = _asked(request) | {"config": steering.to_dict(), "batch_sizes": asdict(sizes)}
    with hold_folder(request.out) as folder:
        record = GenerateRecord.open(folder, asked, overwrite=request.overwrite)
        missing = record.missing(len(request.prompts))
        if missing:
            if record.results:
                say(f"{len(record.results)} of {len(request.prompts)} prompts are finished; going on.")
            pipe = _load(request, steering, sizes, solver)
            arguments = call_arguments(pipe, request.model, steps=request.steps, guidance_scale=request.guidance_scale)
            record.begin(asked | {"arguments": arguments} | _environment(pipe, request.model))
            _draw(pipe, request, missing, record=record, arguments=arguments)
        else:
            say("All prompts are finished: nothing to do.")
        _show([record.results[index] for index in sorted(record.results)], folder)


def _draw(
    pipe: FKSteeringPipeline,
    request: Request,
    indices: Sequence[int],
    *,
    record: GenerateRecord,
    arguments: Mapping[str, Any],
) -> None:
    """Make the images of some of the prompts; each prompt is taken down when its files are written."""
    for index in indices:
        started = time.perf_counter()
        seeds = [request.seed + particle for particle in range(pipe.steering.num_particles)]
        options = {**arguments, "num_images_per_prompt": request.images_per_prompt}
        output = _sample(pipe, request.prompts[index], seeds, options)
        result = {"prompt": request.prompts[index], "seeds": seeds} | _save(record.folder, index, output)
        record.add(index, result, seconds=time.perf_counter() - started)


def _steering(request: Request) -> FKSteeringConfig:
    from fk_reward.search.feynman_kac import FKSteeringConfig, parse_reward_scale

    return FKSteeringConfig(reward_scale=parse_reward_scale(request.reward_scale), **request.settings)


def _batch_sizes(request: Request) -> BatchSizes:
    from fk_reward.pipelines.batching import BatchSizes, parse_batch_size

    return BatchSizes(**{name: parse_batch_size(text) for name, text in request.batch_sizes.items()})


def _load(request: Request, steering: FKSteeringConfig, sizes: BatchSizes, solver: Solver | None) -> FKSteeringPipeline:
    from fk_reward.pipelines.loading import accelerate, load_pipeline

    pipe = load_pipeline(
        request.model,
        reward=request.reward,
        steering=steering,
        device=request.device,
        dtype=request.dtype,
        batch_sizes=sizes,
        reward_device=request.reward_device,
    )
    pipe.solver = solver
    pipe.preview = request.preview  # type: ignore[assignment]
    accelerate(pipe, compiled=request.compiled, channels_last=request.channels_last)
    return pipe


def _asked(request: Request) -> dict[str, Any]:
    names = ["model", "reward", "solver", "preview", "seed", "images_per_prompt"]
    names += ["reward_device", "compiled", "channels_last"]
    return {"prompts": list(request.prompts)} | {name: getattr(request, name) for name in names}


def _sample(pipe: FKSteeringPipeline, prompt: str, seeds: list[int], arguments: dict[str, Any]) -> FKSteeringOutput:
    """One prompt at a time, so that its images do not depend on the other prompts and memory does not grow."""
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, **arguments)


def _save(folder: Path, index: int, output: FKSteeringOutput) -> dict[str, Any]:
    names = [f"{index:03d}-{rank:02d}.png" for rank in range(len(output.images))]
    for name, image in zip(names, output.images, strict=True):
        write_whole(folder / name, partial(image.save, format="PNG"))
    trace, lineage = f"trace-{index:03d}.json", f"lineage-{index:03d}.png"
    output.trace.to_json(folder / trace, thumbnails=True)
    with cosmetic(f"drawing {lineage}"):
        output.trace.plot(folder / lineage)
    return {
        "images": names,
        "rewards": output.rewards[0].tolist(),
        "trace": trace,
        "lineage": lineage,
        "seconds": output.trace.seconds,
    }


def _environment(pipe: FKSteeringPipeline, model: str) -> dict[str, Any]:
    """What the images depend on beside what was typed; an unfinished folder is not continued with another."""
    import diffusers
    import torch
    import transformers

    from fk_reward.version import __version__

    versions = {"fk_reward": __version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    scheduler = type(pipe.scheduler).__name__
    environment = {"scheduler": scheduler, "device": str(pipe.device), "dtype": str(pipe.dtype)}
    return environment | {"versions": versions, "model_files": _model_files(pipe, model)}


def _model_files(pipe: FKSteeringPipeline, model: str) -> str | None:
    """What tells the files of a model from others of the same name; None for the models of the package."""
    from fk_reward.benchmarks.drawing import hub_commit
    from fk_reward.models import EMBEDDED_MODELS, file_state

    return None if model in EMBEDDED_MODELS else hub_commit(pipe) or file_state(model)


def _show(results: list[dict[str, Any]], folder: Path) -> None:
    table = TextTable(f"Results in {folder}")
    table.add_column("prompt")
    table.add_column("image")
    table.add_column("reward", right=True)
    table.add_column("seconds", right=True)
    for result in results:
        rows = zip(result["images"], result["rewards"], strict=True)
        for rank, (name, reward) in enumerate(rows):
            first = (result["prompt"], f"{result['seconds']:.1f}") if rank == 0 else ("", "")
            table.add_row(first[0], name, f"{reward:.4f}", first[1])
    table.print()
