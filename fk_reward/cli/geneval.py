"""`fk-reward geneval`: make, judge and report the images of GenEval, or of the shapes world."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fk_reward.cli import sampler_options, trajectory_options
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.output_folder import NAMED_PATH
from fk_reward.value_checks import parse_integers, parse_shard


def geneval(  # noqa: PLR0913 (one parameter for each option)
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the runs; an unfinished one is resumed.", **NAMED_PATH)
    ],
    suite: Annotated[
        str, typer.Option(help="official; shapes, shapes-sign, ...: offline, with models of the package.")
    ] = "official",
    stage: Annotated[
        list[str] | None, typer.Option(help="generate, judge or report; may be repeated.", show_default="all three")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="fk-paper or llava-reward-paper; options go before it.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="unsteered, best-of-n, fk or another search; may be repeated.", show_default="unsteered, best-of-n, fk"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Name, hub id or folder.", show_default="sd-2.1 or shapes-sd")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option("--reward", "-r", help="Steers and selects; may be repeated.")
    ] = None,
    heldout_reward: Annotated[list[str] | None, typer.Option(help="Only scores; may be repeated.")] = None,
    num_particles: Annotated[
        str | None, typer.Option("--num-particles", "-k", help="Values of K, separated by commas.", show_default="4")
    ] = None,
    solver: Annotated[str | None, trajectory_options.SOLVER] = None,
    preview: Annotated[str | None, trajectory_options.PREVIEW] = None,
    steps: Annotated[
        int | None, typer.Option(help="Scheduler steps.", show_default="the preset's or the solver's, or 50")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="auto, or ddim.", show_default="auto")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance.", show_default="the solver's, 3 for shapes, else the pipeline's own")
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="Noise of each step, of schedulers that take it.", show_default="the solver's, or 1"),
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="Images of each prompt.", show_default="4")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first image of each prompt.", show_default="0")] = None,
    potential: Annotated[str | None, sampler_options.POTENTIAL] = None,
    reward_scale: Annotated[str | None, sampler_options.REWARD_SCALE] = None,
    resample_start: Annotated[float | None, sampler_options.RESAMPLE_START] = None,
    resample_stop: Annotated[float | None, sampler_options.RESAMPLE_STOP] = None,
    num_resamples: Annotated[int | None, sampler_options.NUM_RESAMPLES] = None,
    ess_threshold: Annotated[float | None, sampler_options.ESS_THRESHOLD] = None,
    resampling: Annotated[str | None, sampler_options.RESAMPLING] = None,
    target_ess: Annotated[float | None, sampler_options.TARGET_ESS] = None,
    final_particles: Annotated[int | None, sampler_options.FINAL_PARTICLES] = None,
    stop_reward: Annotated[float | None, sampler_options.STOP_REWARD] = None,
    diversity: Annotated[
        bool | None,
        typer.Option(
            "--diversity/--no-diversity", help="Measure the diversity of each population.", show_default="for shapes"
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Other records than the official ones, in their format.")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Of the suites of shapes.", min=1, show_default="60")] = None,
    detector: Annotated[str | None, typer.Option(help="Hub id or folder of the judge's Mask2Former.")] = None,
    clip: Annotated[str | None, typer.Option(help="Hub id or folder of the judge's CLIP.")] = None,
    skip_self_test: Annotated[
        bool, typer.Option("--skip-self-test", help="Judge even where the judge fails on images that it should know.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help="Particles a call.", min=1, show_default="16")] = None,
    particle_batch_size: Annotated[str | None, typer.Option(help="Particles in one pass of the denoiser.")] = None,
    decode_batch_size: Annotated[str | None, typer.Option(help="Latents decoded at once.")] = None,
    reward_batch_size: Annotated[str | None, typer.Option(help="Images that the reward sees at once.")] = None,
    num_shown: Annotated[int, typer.Option(help="Prompts with images in the HTML page.", min=1)] = 60,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/n: with --stage generate, this process takes every n-th prompt.",
            show_default="as accelerate launched it",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Run GenEval: unsteered, best of K and steered images, judged and compared.

    What is finished is never made again, so that an interrupted command is simply started again. Several processes
    share the work: accelerate launch -m fk_reward.cli geneval ...
    """
    from fk_reward.benchmarks.geneval.runs import STAGES, GenEvalRequest, run_request
    from fk_reward.benchmarks.report import show_report
    from fk_reward.benchmarks.task import TaskOptions
    from fk_reward.rewards.vlm_judge.endpoint import redact_text

    typed: dict[str, Any] = {"model": model, "revision": revision, "seed": seed, "batch_size": batch_size}
    typed |= {"num_samples": num_samples, "num_steps": steps, "scheduler": scheduler, "guidance_scale": guidance_scale}
    typed |= {"solver": solver, "preview": preview, "diversity": diversity, "eta": eta, "potential": potential}
    typed |= {"resample_start": resample_start, "resample_stop": resample_stop, "num_resamples": num_resamples}
    typed |= {"ess_threshold": ess_threshold, "resampling": resampling, "target_ess": target_ess}
    typed |= {"final_particles": final_particles, "stop_reward": stop_reward, "rewards": tuple(reward or ()) or None}
    typed |= {"num_particles": num_particles, "reward_scale": reward_scale}
    sizes = {"particle_batch_size": particle_batch_size, "decode_batch_size": decode_batch_size}
    request = GenEvalRequest(
        out=out,
        suite=suite,
        stages=tuple(stage or STAGES),
        preset=preset,
        methods=tuple(method or ()),
        typed=_parsed(typed, {**sizes, "reward_batch_size": reward_batch_size}),
        heldout=tuple(heldout_reward or ()),
        task_options=TaskOptions(prompts=prompts, num_prompts=num_prompts, detector=detector, clip=clip),
        self_test=not skip_self_test,
        num_shown=num_shown,
        about={"command": redact_text(" ".join(["fk-reward", *sys.argv[1:]]))},
    )
    place = resolve_device(device)
    part = None if shard is None else parse_shard(shard)
    report = run_request(request, device=place, dtype=resolve_dtype(dtype, place), shard=part)
    if report is not None:
        show_report(report)


def _parsed(typed: Mapping[str, Any], sizes: Mapping[str, str | None]) -> dict[str, Any]:
    """What was typed, with its texts read; what was not is left out."""
    from fk_reward.pipelines.batching import BatchSizes, parse_batch_size
    from fk_reward.search.feynman_kac import parse_reward_scale

    readers = {"num_particles": lambda text: parse_integers("num_particles", text), "reward_scale": parse_reward_scale}
    known = {name: value for name, value in typed.items() if value is not None}
    read = {name: readers[name](value) if name in readers else value for name, value in known.items()}
    if any(sizes.values()):
        read["batch_sizes"] = BatchSizes(**{name: parse_batch_size(text) for name, text in sizes.items()})
    return read
