"""What a text-to-image model is trained on, by family: Stable Diffusion, SDXL and Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import Tensor, nn
from torch.nn import functional as F

Conditions = dict[str, Tensor]
"""What the denoiser is told, one row a sample."""


class Denoising(nn.Module):
    """The denoiser and the text encoders of a pipeline, and their training loss.

    Everything random is drawn from a generator on the CPU, so that a step does not depend on the device.

    Args:
        pipe: the pipeline.
        snr_gamma: gamma of the min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); None for equal weights.

    Attributes:
        denoiser_name: the pipeline's name of the denoiser.
        encoder_names: text encoders that may be trained, those that `load_lora_weights` knows.
    """

    denoiser_name: ClassVar[str] = "unet"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(self, pipe: Any, *, snr_gamma: float | None = None) -> None:
        super().__init__()
        self.pipe, self.snr_gamma = pipe, snr_gamma
        names = (self.denoiser_name, *self.encoder_names)
        self.parts = nn.ModuleDict({name: getattr(pipe, name) for name in names if getattr(pipe, name) is not None})
        self.schedule = self.make_schedule(pipe.scheduler.config)

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser."""
        return self.parts[self.denoiser_name]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.denoiser.parameters()).device

    def make_schedule(self, config: Any) -> Any:
        """The noise of the training, from the settings of the pipeline's sampler."""
        return DDPMScheduler.from_config(config)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """What the text encoders make of prompts; with gradients where they are enabled."""
        states, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return {"encoder_hidden_states": states}

    def forward(self, latents: Tensor, conditions: Conditions | Sequence[str], generator: torch.Generator) -> Tensor:
        """The mean loss of clean latents (B, C, h, w) under conditions, or prompts that are encoded here."""
        told = conditions if isinstance(conditions, dict) else self.encode(conditions)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        steps = torch.randint(self.schedule.config.num_train_timesteps, (len(latents),), generator=generator)
        steps = steps.to(latents.device)
        noisy = self.schedule.add_noise(latents, noise, steps)
        predicted = self.denoise(noisy, steps, told)
        error = F.mse_loss(predicted.float(), self._target(latents, noise, steps).float(), reduction="none")
        return (error.flatten(1).mean(dim=1) * self._weights(steps)).mean()

    def denoise(self, noisy: Tensor, steps: Tensor, conditions: Conditions) -> Tensor:
        """The denoiser's raw output."""
        dtype = next(self.denoiser.parameters()).dtype
        told = {name: value.to(self.device, dtype) for name, value in conditions.items()}
        return self.denoiser(noisy.to(dtype), timestep=steps, **self.arguments(told, noisy), return_dict=False)[0]

    def arguments(self, conditions: Conditions, noisy: Tensor) -> dict[str, Any]:  # noqa: ARG002 (of other families)
        """Keywords of the denoiser."""
        return dict(conditions)

    def _target(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, steps)
        return {"epsilon": noise, "sample": latents}[kind]

    def _weights(self, steps: Tensor) -> Tensor:
        if self.snr_gamma is None:
            return torch.ones(len(steps), device=steps.device)
        ratio = compute_snr(self.schedule, steps)
        # The loss on the clean sample weighs min(SNR, gamma); from that of other targets their factor is taken out.
        divisor = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}
        return ratio.clamp(max=self.snr_gamma) / divisor[self.schedule.config.prediction_type]


class XLDenoising(Denoising):
    """SDXL: two text encoders, a pooled text embedding, and the size of the image."""

    encoder_names = ("text_encoder", "text_encoder_2")

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """States of both encoders, and the pooled one of the second."""
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def arguments(self, conditions: Conditions, noisy: Tensor) -> dict[str, Any]:
        """The size that is named is that of the images, which are not cropped."""
        size = tuple(side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
        ids = torch.tensor([[*size, 0, 0, *size]], device=self.device, dtype=conditions["text_embeds"].dtype)
        added = {"text_embeds": conditions["text_embeds"], "time_ids": ids.repeat(len(noisy), 1)}
        return {"encoder_hidden_states": conditions["encoder_hidden_states"], "added_cond_kwargs": added}


class FlowDenoising(Denoising):
    """Stable Diffusion 3: the velocity of a straight path, at times from a logit-normal (Esser et al. 2024, 3.1)."""

    denoiser_name = "transformer"
    encoder_names = ("text_encoder", "text_encoder_2")

    def make_schedule(self, config: Any) -> Any:
        """The same times as the sampler's, shifted for the resolution."""
        shift = config.get("shift", config.get("flow_shift")) or 1.0
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.get("num_train_timesteps", 1000), shift=shift)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """States of all three encoders, and the pooled ones of the two CLIPs."""
        texts = list(prompts)
        states, _, pooled, _ = self.pipe.encode_prompt(
            texts, texts, texts, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def forward(self, latents: Tensor, conditions: Conditions | Sequence[str], generator: torch.Generator) -> Tensor:
        """The mean loss of clean latents (B, C, h, w) under conditions, or prompts that are encoded here."""
        told = conditions if isinstance(conditions, dict) else self.encode(conditions)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        density = compute_density_for_timestep_sampling(
            "logit_normal", len(latents), logit_mean=0.0, logit_std=1.0, generator=generator
        )
        places = (density * self.schedule.config.num_train_timesteps).long()
        steps, sigmas = (values[places].to(latents) for values in (self.schedule.timesteps, self.schedule.sigmas))
        level = sigmas.view(-1, 1, 1, 1)
        predicted = self.denoise((1 - level) * latents + level * noise, steps, told)
        return F.mse_loss(predicted.float(), (noise - latents).float())


_KINDS: dict[str, type[Denoising]] = {
    "StableDiffusionPipeline": Denoising,
    "StableDiffusionXLPipeline": XLDenoising,
    "StableDiffusion3Pipeline": FlowDenoising,
}
"""Class of the pipeline -> family."""


def find_denoising(pipe: Any) -> type[Denoising]:
    """The family of a pipeline.

    Raises:
        ValueError: for another family; it lists the known ones.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in _KINDS:
            return _KINDS[kind.__name__]
    raise ValueError(f"Experts are trained of {', '.join(_KINDS)}; got a {type(pipe).__name__}.")


def encode_latents(pipe: Any, pixels: Tensor) -> Tensor:
    """The latents of images, scaled as the denoiser sees them: means of the encoder's posterior.

    Means and not draws: the posterior of a Stable Diffusion VAE is so narrow that both are the same, but that of a
    small one is wide, and a denoiser that has learnt from means would learn from draws to paint noise.

    Args:
        pipe: the pipeline.
        pixels: (B, 3, H, W) in [0, 1].

    Returns:
        (B, C, h, w) float32, on the CPU.
    """
    vae = pipe.vae
    dtype = vae.dtype
    if dtype != torch.float32:
        vae.to(torch.float32)  # half precision overflows in SDXL's encoder
    try:
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device) * 2 - 1).latent_dist.mean
    finally:
        if dtype != torch.float32:
            vae.to(dtype)
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    latents = latents - shift
    if getattr(vae.config, "latents_mean", None) is not None and vae.config.latents_std is not None:
        center, spread = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        latents = (latents - center) / spread
    return (latents * scale).float().cpu()
