"""`fk-reward generate`: images of prompts, steered by a reward, with the record of how they came about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fk_reward.cli import sampler_options, trajectory_options
from fk_reward.cli.generate_request import Request, run_request
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import NAMED_PATH


def generate(  # noqa: PLR0913 (one parameter for each option)
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, each in quotes.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False, **NAMED_PATH)],
    model: Annotated[
        str, typer.Option("--model", "-m", help="shapes-sd (in the package), sd-2.1, sdxl, a hub id or a folder.")
    ] = "shapes-sd",
    reward: Annotated[
        str, typer.Option("--reward", "-r", help="A reward of `fk-reward rewards`, or a composition of them.")
    ] = DEFAULT_EMBEDDED_REWARD,
    num_particles: Annotated[int, typer.Option("--num-particles", "-k", help="K, particles of each prompt.")] = 4,
    images_per_prompt: Annotated[int, typer.Option(help="Images to keep of the K, best first.")] = 1,
    solver: Annotated[str | None, trajectory_options.SOLVER] = None,
    steps: Annotated[int | None, trajectory_options.STEPS] = None,
    guidance_scale: Annotated[float | None, trajectory_options.GUIDANCE_SCALE] = None,
    preview: Annotated[str | None, trajectory_options.PREVIEW] = None,
    seed: Annotated[int, typer.Option(help="Particle k of each prompt starts from the noise of seed + k.")] = 0,
    potential: Annotated[str, sampler_options.POTENTIAL] = "max",
    reward_scale: Annotated[str, sampler_options.REWARD_SCALE] = "10",
    resample_start: Annotated[float, sampler_options.RESAMPLE_START] = 0.2,
    resample_stop: Annotated[float, sampler_options.RESAMPLE_STOP] = 0.8,
    num_resamples: Annotated[int, sampler_options.NUM_RESAMPLES] = 4,
    resampling: Annotated[str, sampler_options.RESAMPLING] = "systematic",
    ess_threshold: Annotated[float, sampler_options.ESS_THRESHOLD] = 0.5,
    selection: Annotated[str, sampler_options.SELECTION] = "best",
    target_ess: Annotated[float, sampler_options.TARGET_ESS] = 0.5,
    final_particles: Annotated[int | None, sampler_options.FINAL_PARTICLES] = None,
    stop_reward: Annotated[float | None, sampler_options.STOP_REWARD] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    particle_batch_size: Annotated[
        str | None, typer.Option(help="Particles in one pass of the denoiser, or auto; all if not given.")
    ] = None,
    decode_batch_size: Annotated[str | None, typer.Option(help="Latents decoded at once, or auto.")] = None,
    reward_batch_size: Annotated[str | None, typer.Option(help="Images the reward sees at once, or auto.")] = None,
    reward_device: Annotated[
        str | None, typer.Option(help="Where the reward is: cpu, cuda:1, ...", show_default="that of the model")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the blocks of model and reward.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Layout of the model's convolutions.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Generate images, steered by a reward.

    Writes the images (000-00.png is the best of the first prompt), and for each prompt trace-000.json and
    lineage-000.png; result.json sums up.
    """
    settings: dict[str, Any] = {"potential": potential, "resampling": resampling, "selection": selection}
    settings |= {"resample_start": resample_start, "resample_stop": resample_stop, "num_resamples": num_resamples}
    settings |= {"ess_threshold": ess_threshold, "target_ess": target_ess}
    settings |= {"num_particles": num_particles, "final_particles": final_particles, "stop_reward": stop_reward}
    sizes = {"particle_batch_size": particle_batch_size, "decode_batch_size": decode_batch_size}
    request = Request(
        prompts=tuple(prompts),
        out=out,
        model=model,
        reward=reward,
        settings=settings,
        reward_scale=reward_scale,
        images_per_prompt=images_per_prompt,
        solver=solver,
        steps=steps,
        guidance_scale=guidance_scale,
        preview=preview,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_sizes=sizes | {"reward_batch_size": reward_batch_size},
        reward_device=reward_device,
        compiled=compiled,
        channels_last=channels_last,
        overwrite=overwrite,
    )
    run_request(request)
