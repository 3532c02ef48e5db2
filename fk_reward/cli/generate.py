"""`fk-reward generate`: images of prompts, steered by a reward, with the record of how they came about."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fk_reward.cli.errors import clean_errors
from fk_reward.cli.loading import call_arguments, load_pipeline
from fk_reward.cli.output_folder import prepare_folder
from fk_reward.defaults import DEFAULT_EMBEDDED_REWARD

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

console = Console()


def generate(  # noqa: PLR0913 (one parameter for each option)
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, each in quotes.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", "-m", help="shapes-sd (in the package), sd-2.1, sdxl, a hub id or a folder.")
    ] = "shapes-sd",
    reward: Annotated[
        str, typer.Option("--reward", "-r", help="A reward of `fk-reward rewards`, or a composition of them.")
    ] = DEFAULT_EMBEDDED_REWARD,
    num_particles: Annotated[int, typer.Option("--num-particles", "-k", help="K, particles of each prompt.")] = 4,
    images_per_prompt: Annotated[int, typer.Option(help="Images to keep of the K, best first.")] = 1,
    solver: Annotated[str | None, typer.Option(help="ddim-100, sde-dpmsolver++-20, lcm-4, ...")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Scheduler steps.", min=1, show_default="the solver's, or 50")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Guidance.", show_default="the solver's, 3 for shapes-sd, or the pipeline's own"),
    ] = None,
    preview: Annotated[
        str | None, typer.Option(help="Decodes at the scoring steps: auto, taesd, taesdxl, vae/2, a hub id, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Particle k of each prompt starts from the noise of seed + k.")] = 0,
    potential: Annotated[str, typer.Option(help="max, difference, sum or immediate.")] = "max",
    reward_scale: Annotated[str, typer.Option(help="Lambda, or auto.")] = "10",
    num_resamples: Annotated[int, typer.Option(help="Scoring steps before the end; 0: plain best of K.")] = 4,
    resampling: Annotated[
        str, typer.Option(help="systematic, stratified, residual, multinomial or ssp.")
    ] = "systematic",
    ess_threshold: Annotated[float, typer.Option(help="Resample below this fraction of K; 1: always.")] = 0.5,
    selection: Annotated[str, typer.Option(help="best, or sample (by weight).")] = "best",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    particle_batch_size: Annotated[
        str | None, typer.Option(help="Particles in one pass of the denoiser, or auto; all if not given.")
    ] = None,
    decode_batch_size: Annotated[str | None, typer.Option(help="Latents decoded at once, or auto.")] = None,
    reward_batch_size: Annotated[str | None, typer.Option(help="Images the reward sees at once, or auto.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Generate images, steered by a reward.

    Writes the images (000-00.png is the best of the first prompt), and for each prompt trace-000.json and
    lineage-000.png; result.json sums up.
    """
    with clean_errors():
        from fk_reward.batch_sizes import BatchSizes, parse_batch_size
        from fk_reward.config import FKSteeringConfig, parse_reward_scale
        from fk_reward.pipelines.solvers import resolve_solver

        steering = FKSteeringConfig(
            num_particles=num_particles,
            potential=potential,
            reward_scale=parse_reward_scale(reward_scale),
            num_resamples=num_resamples,
            resampling=resampling,
            ess_threshold=ess_threshold,
            selection=selection,
        )
        sizes = BatchSizes(
            particle_batch_size=parse_batch_size(particle_batch_size),
            decode_batch_size=parse_batch_size(decode_batch_size),
            reward_batch_size=parse_batch_size(reward_batch_size),
        )
        chosen_solver = resolve_solver(solver)
        folder = prepare_folder(out, overwrite=overwrite)
        pipe = load_pipeline(model, reward=reward, steering=steering, device=device, dtype=dtype, batch_sizes=sizes)
        pipe.solver, pipe.preview = chosen_solver, preview
        arguments = call_arguments(pipe, model, steps=steps, guidance_scale=guidance_scale)
        start = time.perf_counter()
        results = []
        for index, prompt in enumerate(prompts):
            seeds = [seed + particle for particle in range(num_particles)]
            output = _sample(pipe, prompt, seeds, arguments | {"num_images_per_prompt": images_per_prompt})
            results.append({"prompt": prompt, "seeds": seeds} | _save(folder, index, output))
        request = {"model": model, "reward": reward, "solver": solver, "preview": preview, "arguments": arguments}
        request |= {"config": steering.to_dict(), "batch_sizes": asdict(sizes)}
        summary = request | _environment(pipe) | {"seconds": time.perf_counter() - start, "results": results}
        (folder / "result.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _show(results, folder)


def _sample(pipe: FKSteeringPipeline, prompt: str, seeds: list[int], arguments: dict[str, Any]) -> FKSteeringOutput:
    """One prompt at a time, so that its images do not depend on the other prompts and memory does not grow."""
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, **arguments)


def _save(folder: Path, index: int, output: FKSteeringOutput) -> dict[str, Any]:
    names = [f"{index:03d}-{rank:02d}.png" for rank in range(len(output.images))]
    for name, image in zip(names, output.images, strict=True):
        image.save(folder / name)
    trace, lineage = f"trace-{index:03d}.json", f"lineage-{index:03d}.png"
    output.trace.to_json(folder / trace, thumbnails=True)
    output.trace.plot(folder / lineage)
    return {
        "images": names,
        "rewards": output.rewards[0].tolist(),
        "trace": trace,
        "lineage": lineage,
        "seconds": output.trace.seconds,
    }


def _environment(pipe: FKSteeringPipeline) -> dict[str, Any]:
    import diffusers
    import torch
    import transformers

    from fk_reward.version import __version__

    versions = {"fk_reward": __version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    scheduler = type(pipe.scheduler).__name__
    return {"scheduler": scheduler, "device": str(pipe.device), "dtype": str(pipe.dtype), "versions": versions}


def _show(results: list[dict[str, Any]], folder: Path) -> None:
    table = Table(title=f"Results in {folder}", title_justify="left")
    table.add_column("prompt", overflow="fold")
    table.add_column("image")
    table.add_column("reward", justify="right")
    table.add_column("seconds", justify="right")
    for result in results:
        rows = zip(result["images"], result["rewards"], strict=True)
        for rank, (name, reward) in enumerate(rows):
            first = (result["prompt"], f"{result['seconds']:.1f}") if rank == 0 else ("", "")
            table.add_row(first[0], name, f"{reward:.4f}", first[1])
    console.print(table)
