"""`fk-reward geneval`: make, judge and report GenEval's pictures, or those of the shapes world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fk_reward.cli import sampler_options
from fk_reward.cli.geneval_request import STAGES, Request, run_request
from fk_reward.output_folder import NAMED_PATH


def geneval(  # noqa: PLR0913 (one parameter for each option)
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the runs; an unfinished one is resumed.", **NAMED_PATH)
    ],
    suite: Annotated[str, typer.Option(help="official, or shapes: offline, with models of the package.")] = "official",
    stage: Annotated[
        list[str] | None, typer.Option(help="generate, judge or report; may be repeated.", show_default="all three")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="fk-paper or llava-reward-paper; options go before it.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="unsteered, best-of-k or fk; may be repeated.", show_default="all three"),
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
    steps: Annotated[int | None, typer.Option(help="Scheduler steps.", show_default="50")] = None,
    scheduler: Annotated[str | None, typer.Option(help="auto, or ddim.", show_default="auto")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance.", show_default="3 for shapes, else the pipeline's own")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="Pictures of each prompt.", show_default="4")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture of each prompt.", show_default="0")] = None,
    potential: Annotated[str | None, sampler_options.POTENTIAL] = None,
    reward_scale: Annotated[str | None, sampler_options.REWARD_SCALE] = None,
    resample_start: Annotated[float | None, sampler_options.RESAMPLE_START] = None,
    resample_stop: Annotated[float | None, sampler_options.RESAMPLE_STOP] = None,
    num_resamples: Annotated[int | None, sampler_options.NUM_RESAMPLES] = None,
    ess_threshold: Annotated[float | None, sampler_options.ESS_THRESHOLD] = None,
    resampling: Annotated[str | None, sampler_options.RESAMPLING] = None,
    prompts: Annotated[Path | None, typer.Option(help="Other records than the official ones, in their format.")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="With --suite shapes.", min=1, show_default="60")] = None,
    detector: Annotated[str | None, typer.Option(help="Hub id or folder of the judge's Mask2Former.")] = None,
    clip: Annotated[str | None, typer.Option(help="Hub id or folder of the judge's CLIP.")] = None,
    skip_self_test: Annotated[
        bool, typer.Option("--skip-self-test", help="Judge even where the judge fails on pictures it should know.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help="Particles a call.", min=1, show_default="16")] = None,
    num_shown: Annotated[int, typer.Option(help="Prompts with pictures in the HTML page.", min=1)] = 60,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Run GenEval: unsteered, best of K and steered pictures, judged and compared.

    What is finished is never made again, so that an interrupted command is simply started again. Several processes
    share the work: accelerate launch -m fk_reward.cli geneval ...
    """
    typed: dict[str, Any] = {"model": model, "revision": revision, "seed": seed, "batch_size": batch_size}
    typed |= {"num_samples": num_samples, "num_steps": steps, "scheduler": scheduler, "guidance_scale": guidance_scale}
    typed |= {"potential": potential, "resample_start": resample_start, "resample_stop": resample_stop}
    typed |= {"num_resamples": num_resamples, "ess_threshold": ess_threshold, "resampling": resampling}
    typed |= {"rewards": tuple(reward or ()) or None, "num_particles": num_particles, "reward_scale": reward_scale}
    request = Request(
        out=out,
        suite=suite,
        stages=tuple(stage or STAGES),
        preset=preset,
        methods=tuple(method or ()),
        typed={name: value for name, value in typed.items() if value is not None},
        heldout=tuple(heldout_reward or ()),
        prompts=prompts,
        num_prompts=num_prompts,
        models={"detector": detector, "clip": clip},
        self_test=not skip_self_test,
        device=device,
        dtype=dtype,
        num_shown=num_shown,
    )
    run_request(request)
