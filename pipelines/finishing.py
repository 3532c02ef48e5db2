"""From what the wrapped pipeline returned to what a steered call returns."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from fk_reward.pipelines.decoding import to_unit_range
from fk_reward.pipelines.output import FKSteeringOutput
from fk_reward.pipelines.steered_run import SteeredRun

_SAMPLES_AS_TENSORS = ("IFPipeline", "Kandinsky3Pipeline")
"""Pipelines that return a tensor as the network gives it, in [-1, 1], where the others return [0, 1]."""


def finish(run: SteeredRun, out: Any, pipe: Any, *, num_images_per_prompt: int, output_type: str) -> FKSteeringOutput:
    """Score the finished samples, make the terminal correction, and select.

    Args:
        run: the run.
        out: the wrapped pipeline's output: latents, or images as a tensor.
        pipe: the wrapped pipeline.
        num_images_per_prompt: n.
        output_type: of the call.
    """
    is_latent = output_type == "latent"
    finished = out.images if is_latent else _pictures(out.images, pipe)
    rewards = run.score_finished(finished, is_latent=is_latent)
    run.finish(rewards)
    selected = run.particle_filter.select(num_images_per_prompt)
    offsets = run.particle_filter.num_particles * torch.arange(len(selected))[:, None]
    indices = (selected + offsets).flatten()
    images, flags = run.exchange.gather(finished), getattr(out, "nsfw_content_detected", None)
    if flags is not None:
        flags = run.exchange.gather(torch.tensor(flags)).tolist()
    images = images[indices.to(images.device)]
    nothing_allowed = run.particle_filter.abstained.repeat_interleave(num_images_per_prompt)
    images[nothing_allowed.to(images.device)] = 0  # indexing made a copy
    return FKSteeringOutput(
        images=_converted(images, output_type),
        rewards=rewards.detach().to("cpu", torch.float32)[indices].view(selected.shape),
        trace=run.trace(selected),
        nsfw_content_detected=None if flags is None else [bool(flags[i]) for i in indices.tolist()],
    )


def _pictures(images: Tensor, pipe: Any) -> Tensor:
    """What the wrapped pipeline returned as `"pt"`, in [0, 1]."""
    returns_samples = any(cls.__name__ in _SAMPLES_AS_TENSORS for cls in type(pipe).__mro__)
    return to_unit_range(images) if returns_samples else images


def _converted(images: Tensor, output_type: str) -> Any:
    if output_type in ("latent", "pt"):
        return images
    arrays = VaeImageProcessor.pt_to_numpy(images)
    return arrays if output_type == "np" else VaeImageProcessor.numpy_to_pil(arrays)
