"""Costs of each phase of a steered call, found by running it and watching its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fk_reward.pipelines.call_arguments import complete_eta
from fk_reward.pipelines.decoding import Preview, preview_decoder
from fk_reward.planning.meta_device import FusedAttention, LiveBytes, MetaTensors, Operations
from fk_reward.planning.planned_models import PlannedModels, tensors_of
from fk_reward.rewards import Reward
from fk_reward.search.feynman_kac import FKSteeringConfig

PHASES = ("text", "denoise", "preview", "preview reward", "preview gradient", "gradient", "decode", "reward")
"""In the order of a call with a preview; without one, decoder and reward work at the scoring steps, too.

A `gradient` is that of a guided step: all its particles are decoded and scored in one graph, and then the backward
pass; one of the two happens, and only where the search follows gradients."""

PROMPT = "a photo of a red circle and a blue square"


STEERED_LATENTS = 4
"""Tensors of the latents' size that steering keeps beside the loop: the last step's model output and sample (a run may
end with noise left, and is then scored by its prediction), the predicted clean sample, and the copy that is decoded."""


@dataclass(frozen=True)
class BatchCosts:
    """Costs of a batch of n images.

    Attributes:
        activations: bytes above the weights, at most, in each of `PHASES`: the text encoders, a step of the denoiser,
            the decoding of n images by the preview, their reward, the decoding of n images by the autoencoder, and
            their reward. Of `denoise` without `kept`. Those of the preview only if there is one, and those of a
            gradient, from latents through the reward and back, only if they were asked for.
        kept: bytes that stay from step to step: embeddings, latents, what the scheduler remembers.
        flops: floating-point operations of the same phases; of `denoise` for one step. Those of a gradient in two
            parts, `gradient decode` and `gradient reward`, the backward pass included.
        image_bytes: of n decoded images.
        preview_bytes: of n decoded previews, 0 without a preview.
    """

    activations: dict[str, int]
    kept: int
    flops: dict[str, int]
    image_bytes: int
    preview_bytes: int = 0


@dataclass(frozen=True)
class ImageRequest:
    """Size and guidance of the images.

    Attributes:
        height: in pixels, None for the pipeline's default.
        width: the same.
        guidance_scale: None for the pipeline's default.
    """

    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Those that are set, as arguments of a pipeline's call."""
        return {name: value for name, value in vars(self).items() if value is not None}


@torch.no_grad()
def batch_costs(models: PlannedModels, image: ImageRequest, *, batch_size: int, guided: bool = False) -> BatchCosts:
    """Run each phase on a batch of n images of one prompt.

    On the meta device nothing is computed. On real tensors the same bytes are costs, and real work is done.

    Args:
        models: the pipeline and the reward, on the meta device or not.
        image: what is drawn.
        batch_size: n.
        guided: whether to run guided steps as well, of a reward that is differentiable.
    """
    generation = _Generation(models, image)
    latents = generation.run(batch_size)
    decode, images = _decoded(models, image, latents, preview=None)
    reward = _scored(models, images)
    watches = {"text": generation.text, "denoise": generation.denoise, "decode": decode, "reward": reward}
    preview_bytes = 0
    if models.preview is not None:
        watches["preview"], previews = _decoded(models, image, latents, preview=models.preview)
        # Images of the same shape cost the reward the same.
        watches["preview reward"] = reward if previews.shape == images.shape else _scored(models, previews)
        preview_bytes = previews.nbytes
    flops = {phase: watch.flops for phase, watch in watches.items()}
    for name, preview in {"gradient": None, "preview gradient": models.preview}.items() if guided else ():
        if name == "gradient" or preview is not None:
            watches[name], flops[f"{name} decode"], flops[f"{name} reward"] = _differentiated(
                models, image, latents, preview=preview
            )
    return BatchCosts(
        activations={phase: watch.peak for phase, watch in watches.items()},
        kept=generation.kept + STEERED_LATENTS * latents.nbytes,
        flops=flops,
        image_bytes=images.nbytes,
        preview_bytes=preview_bytes,
    )


def _decoded(
    models: PlannedModels, image: ImageRequest, latents: Tensor, *, preview: Preview | None
) -> tuple[_Watch, Tensor]:
    """Costs of decoding, and the images; without a preview by the pipeline's autoencoder."""
    decoder = preview_decoder(preview, models.pipe, height=image.height, width=image.width)
    vae = getattr(models.pipe, "vae", None)
    held = [] if vae is None else tensors_of(vae)  # which the pipeline may widen to float32 while it decodes
    with watched(held + models.preview_weights()) as watch:
        images = decoder(latents)
    return watch, images


def _scored(models: PlannedModels, images: Tensor) -> _Watch:
    """Costs of the reward, of its parts one after the other."""
    peak, flops = 0, 0
    for reward in models.rewards:
        reward.batch_size = len(images)
        held = [tensor for module in reward._held_modules() for tensor in tensors_of(module)]
        with watched(held) as watch:
            reward.score(_readable(images, reward), [PROMPT] * len(images))
        peak, flops = max(peak, watch.peak), flops + watch.flops
    return _Watch(peak, flops)


def _differentiated(
    models: PlannedModels, image: ImageRequest, latents: Tensor, *, preview: Preview | None
) -> tuple[_Watch, int, int]:
    """Costs of the gradient of the reward at the latents; operations of the decoder, and of the reward, there and back.

    The peak is that of one graph: whatever the batches of decoder and reward are, all of them wait for the backward
    pass.
    """
    decoder = preview_decoder(preview, models.pipe, height=image.height, width=image.width)
    vae = getattr(models.pipe, "vae", None)
    held = [*([] if vae is None else tensors_of(vae)), *models.preview_weights(), *models.reward_weights()]
    with watched(held) as watch, torch.enable_grad():
        x0_pred = latents.detach().clone().requires_grad_()
        images = decoder(x0_pred)
        decoded = watch.so_far()
        scores = torch.stack([_total_score(reward, images) for reward in models.rewards]).sum()
        (of_images,) = torch.autograd.grad(scores, images)
        scored = watch.so_far()
        torch.autograd.grad(images, x0_pred, of_images)
    return watch, decoded + watch.flops - scored, scored - decoded


def _total_score(reward: Reward, images: Tensor) -> Tensor:
    reward.batch_size = len(images)
    return reward.score(images, [PROMPT] * len(images)).sum()


def _readable(images: Tensor, reward: Reward) -> Tensor:
    """Replace meta images by grey ones for a reward without weights, which is a rule that reads numbers."""
    return torch.full(images.shape, 0.5) if reward.device is None and images.is_meta else images


@dataclass
class _Watch:
    peak: int = 0
    flops: int = 0
    so_far: Callable[[], int] = lambda: 0
    """Operations up to now, while it watches."""


@contextmanager
def watched(held: list[Tensor]) -> Iterator[_Watch]:
    """Measure the body of the `with` statement."""
    watch = _Watch()
    # The last mode is asked first: MetaTensors moves the operands, then bytes and operations are counted.
    with Operations() as operations, LiveBytes(held) as tracker, MetaTensors(), FusedAttention():
        watch.so_far = lambda: operations.total
        yield watch
    watch.peak, watch.flops = tracker.peak, operations.total


class _Generation:
    """Runs the pipeline's own loop for a few steps, and counts text encoding and denoising separately.

    There are as many steps as a scheduler of this order needs to fill its memory of model outputs.
    """

    def __init__(self, models: PlannedModels, image: ImageRequest) -> None:
        self.text, self.denoise = _Watch(), _Watch()
        self.kept = 0
        self._models, self._image = models, image
        self._num_steps = 1 + models.pipe.scheduler.config.get("solver_order", 1)

    def run(self, batch_size: int) -> Tensor:
        """Generate latents of n images of one prompt."""
        pipe = self._models.pipe
        arguments: dict[str, Any] = self._image.arguments() | {"num_inference_steps": self._num_steps}
        complete_eta(pipe, FKSteeringConfig(num_resamples=0), arguments)
        pipe.set_progress_bar_config(disable=True)
        with Operations() as operations, LiveBytes() as tracker, MetaTensors(), FusedAttention():
            with self._marked(tracker, operations):
                out = pipe(PROMPT, num_images_per_prompt=batch_size, output_type="latent", **arguments)
        self.denoise.peak = tracker.peak - self.kept
        self.denoise.flops = (operations.total - self.text.flops) // self._num_steps
        return out.images

    @contextmanager
    def _marked(self, tracker: LiveBytes, operations: Operations) -> Iterator[None]:
        def begin(*_: Any) -> None:
            if self.text.peak == 0:  # the first step: all that was counted before it is text encoding
                self.text.peak, self.text.flops = tracker.peak, operations.total
                tracker.restart()
            self.kept = max(self.kept, tracker.live)  # tensors that are alive when a step begins stay between steps

        hook = self._models.denoiser.register_forward_pre_hook(begin)
        try:
            yield
        finally:
            hook.remove()
