"""A sampler function of ComfyUI that steers: `sample_steered(model, x, sigmas, extra_args, callback, disable)`.

ComfyUI's samplers get a model that answers with the denoised prediction, and the noise levels of the run. Both are said
here in the terms of a Diffusers scheduler, whose `step` our `steer` intercepts: the search, its weights, the copying of
particles and the checks are those of the package.

    x = x0 + sigma * noise                ancestral Euler steps (eta = 1), or Euler steps, of k-diffusion
    x = (1 - sigma) * x0 + sigma * noise  flow models (Flux, SD 3, ...): SDE-DPM-Solver++, or Euler steps

Nothing of ComfyUI is imported here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from fk_reward.pipelines import FlowMatchSDEScheduler, SteeredLoop

logger = logging.getLogger(__name__)

STOCHASTIC, DETERMINISTIC = "stochastic", "deterministic"
STEPS = (STOCHASTIC, DETERMINISTIC)
"""How the particles move: with new noise in each step, or without."""


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What the sampler node hands to the sampler function.

    Attributes:
        reward: a reward of fk_reward.
        prompt: the text that the reward reads. ComfyUI's conditioning holds embeddings only.
        decode: latents as a VAE takes them, `(B, C, H, W)`, to images `(B, H, W, 3)` in [0, 1].
        search: a name of `fk_reward.search.SEARCHES`.
        settings: fields of its config. The number of particles is the batch size of the latents.
        num_images: how many latents come back, best first.
        steps: `"stochastic"` or `"deterministic"`; copies need noise.
        after_scoring: called when images have been decoded and scored, to bring the model back to its device.
    """

    reward: Any
    prompt: str
    decode: Callable[[Tensor], Tensor]
    search: str = "fk"
    settings: dict[str, Any] = field(default_factory=dict)
    num_images: int = 1
    steps: str = STOCHASTIC
    after_scoring: Callable[[], None] = lambda: None


@torch.no_grad()
def sample_steered(  # noqa: PLR0913 (ComfyUI's signature of a sampler function)
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,  # noqa: ARG001 (of the progress bar, which ComfyUI draws itself)
    *,
    steering: Steering,
    is_flow: bool = False,
) -> Tensor:
    """Draw the latents of one prompt together and return the chosen ones, best first.

    Args:
        model: `model(x, sigma, **extra_args)` is the denoised prediction; `model.inner_model.inner_model` is the model
            that knows how latents are scaled.
        x: `(K, C, H, W)`, the noised start; K is the number of particles.
        sigmas: `(T + 1,)`, descending, 0 at the end.
        extra_args: of the model; ComfyUI's seed is among them.
        callback: gets `i`, `x`, `sigma`, `sigma_hat` and `denoised` of each step, for previews and interrupts.
        disable: ignored.
        steering: what the node was told.
        is_flow: whether the latents are those of a flow model.

    Returns:
        `(n, C, H, W)`.

    Raises:
        ValueError: for levels that do not end at 0, a batch or a search that cannot be steered.
    """
    levels = _checked_levels(sigmas)
    given = dict(extra_args or {})
    loop = _loop(model, steering, given, num_particles=len(x))
    if loop.needs_noise and steering.steps == DETERMINISTIC:
        raise ValueError(
            f"{steering.search} copies particles, which stay the same without noise: set steps={STOCHASTIC}."
        )
    scheduler = _scheduler(levels, is_flow=is_flow, stochastic=steering.steps == STOCHASTIC)
    noise = torch.Generator().manual_seed(_seed(given) + 1)  # another one than that of the start
    rows = _ModelRows(model, given)

    def denoised(sample: Tensor, sigma: Tensor) -> Tensor:
        return model(sample, sigma * sample.new_ones(len(sample)), **given)

    def denoise(sample: Tensor, timestep: Tensor) -> Tensor:
        """What a scheduler calls the model's output: noise, or noise - x0; the same expression in both families."""
        return (sample - denoised(sample, timestep)) / timestep

    with loop.steering(scheduler, row_states=[rows], denoise=denoise):
        for i, sigma in enumerate(scheduler.timesteps):
            predicted = denoised(x, sigma)
            if callback is not None:
                callback({"i": i, "x": x, "sigma": sigma, "sigma_hat": sigma, "denoised": predicted})
            x = scheduler.step((x - predicted) / sigma, sigma, x, generator=noise)[0]
    result = loop.finish(x)
    logger.info("fk_reward: %s, rewards %s", steering.search, [round(value, 4) for value in result.rewards[0].tolist()])
    return result.samples


def _loop(model: Any, steering: Steering, extra_args: dict[str, Any], *, num_particles: int) -> SteeredLoop:
    def images(latents: Tensor) -> Tensor:
        decoded = steering.decode(model.inner_model.inner_model.process_latent_out(latents.float()))
        steering.after_scoring()
        return decoded.movedim(-1, 1).clamp(0, 1).to(latents.device)  # ComfyUI's VAE answers on the CPU

    return SteeredLoop(
        steering.search,
        steering.reward,
        [steering.prompt],
        images,
        num_particles=num_particles,
        num_images=steering.num_images,
        generators=torch.Generator().manual_seed(_seed(extra_args) + 2),
        **steering.settings,
    )


def _checked_levels(sigmas: Tensor) -> Tensor:
    levels = sigmas.float()
    if len(levels) < 3 or float(levels[-1]) != 0 or not bool((levels.diff() < 0).all()):
        raise ValueError(
            "Steering needs at least two steps whose sigmas descend to 0, because finished images are scored, got "
            f"{[round(float(level), 4) for level in levels[:3]]} ... {round(float(levels[-1]), 4)}: do not split the "
            "sigmas, nor flip them."
        )
    return levels


def _scheduler(levels: Tensor, *, is_flow: bool, stochastic: bool) -> Any:
    """A scheduler of Diffusers that has exactly these noise levels."""
    kinds = {
        (False, True): EulerAncestralDiscreteScheduler,
        (False, False): EulerDiscreteScheduler,
        (True, True): FlowMatchSDEScheduler,
        (True, False): FlowMatchEulerDiscreteScheduler,
    }
    scheduler: Any = kinds[is_flow, stochastic]()
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas, scheduler.timesteps = levels, levels[:-1]
    scheduler.num_inference_steps = len(levels) - 1
    scheduler.is_scale_input_called = True  # ComfyUI's model scales its input itself
    scheduler.set_begin_index(0)
    return scheduler


def _seed(extra_args: dict[str, Any]) -> int:
    return int(extra_args.get("seed") or 0) % 2**62


class _ModelRows:
    """What ComfyUI's inpainting keeps beside the latents: a row of noise, image and mask for each of them."""

    def __init__(self, model: Any, extra_args: dict[str, Any]) -> None:
        self._model, self._extra_args = model, extra_args

    def gather(self, take: Callable[[Tensor], Tensor], num_rows: int) -> None:
        """Let the rows follow their particles, also where there are fewer."""
        for name in ("noise", "latent_image"):
            value = getattr(self._model, name, None)
            if isinstance(value, Tensor) and len(value) == num_rows:
                setattr(self._model, name, take(value))
        mask = self._extra_args.get("denoise_mask")
        if isinstance(mask, Tensor) and len(mask) == num_rows:
            self._extra_args["denoise_mask"] = take(mask)
