"""From what the wrapped pipeline returned to what a steered call returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fk_reward.pipelines.output import FKSteeringOutput
from fk_reward.pipelines.steered_run import SteeredRun


def finish(run: SteeredRun, out: Any, pipe: Any, *, num_images_per_prompt: int, output_type: str) -> FKSteeringOutput:
    """Score the finished samples, make the terminal correction, and select.

    Args:
        run: the run.
        out: the wrapped pipeline's output: latents, or images as a tensor.
        pipe: the wrapped pipeline.
        num_images_per_prompt: n.
        output_type: of the call.
    """
    rewards = run.score_finished(out.images, is_latent=output_type == "latent")
    run.finish(rewards, len(pipe.scheduler.timesteps))
    selected = run.particle_filter.select(num_images_per_prompt)
    offsets = run.particle_filter.num_particles * torch.arange(len(selected))[:, None]
    indices = (selected + offsets).flatten()
    images, flags = run.exchange.gather(out.images), getattr(out, "nsfw_content_detected", None)
    if flags is not None:
        flags = run.exchange.gather(torch.tensor(flags)).tolist()
    return FKSteeringOutput(
        images=_converted(images[indices.to(images.device)], pipe, output_type),
        rewards=rewards.detach().to("cpu", torch.float32)[indices].view(selected.shape),
        trace=run.trace(selected),
        nsfw_content_detected=None if flags is None else [bool(flags[i]) for i in indices.tolist()],
    )


def _converted(images: Tensor, pipe: Any, output_type: str) -> Any:
    if output_type in ("latent", "pt"):
        return images
    arrays = pipe.image_processor.pt_to_numpy(images)
    return arrays if output_type == "np" else pipe.image_processor.numpy_to_pil(arrays)
