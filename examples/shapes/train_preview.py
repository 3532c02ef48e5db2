"""Distils the decoder of the `shapes-sd` VAE into a small one, which decodes predictions while an image is drawn."""

from __future__ import annotations

import time
from pathlib import Path

import cyclopts
import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from fit import FitConfig, fit, save_model_of_diffusers
from make_scenes import encode
from scene_data import TensorsDataset, captioned_scenes, scene_images
from torch import Tensor, nn

from fk_reward.models import resolve_model
from fk_reward.pipelines.decoding import unscale_latents
from fk_reward.shapes import BACKGROUND


def make_preview() -> AutoencoderTiny:
    """The decoder, untrained. The class has an encoder, too, which stays as it is: nothing needs it."""
    return AutoencoderTiny(
        encoder_block_out_channels=(4,),
        num_encoder_blocks=(0,),
        decoder_block_out_channels=(12,) * 3,
        num_decoder_blocks=(3, 3, 0),
        latent_channels=4,
    )


def like_predictions(latents: Tensor) -> Tensor:
    """Latents such as the denoiser predicts early: a half of them blends of two scenes, all with a little noise.

    What is predicted at a high noise level is a mean over images, which no scene looks like.
    """
    batch = (len(latents), 1, 1, 1)
    share = torch.where(torch.rand(batch) < 0.5, torch.rand(batch), 1.0).to(latents)
    noise = 0.3 * torch.rand(batch).to(latents) * torch.randn_like(latents)
    return share * latents + (1 - share) * latents.roll(1, dims=0) + noise


class PreviewObjective(nn.Module):
    """L1 + L2 between the images of the two decoders, pixels of objects weighted 4 to 1 as in the VAE's training."""

    def __init__(self, preview: AutoencoderTiny, vae: AutoencoderKL, foreground_weight: float = 4.0) -> None:
        super().__init__()
        self.preview, self.vae, self.foreground_weight = preview, vae.requires_grad_(False), foreground_weight
        preview.encoder.requires_grad_(False)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Decodes `(B, 4, 16, 16)` latents as the scheduler sees them, by both."""
        latents = like_predictions(latents)
        with torch.no_grad():
            target = self.vae.decode(unscale_latents(self.vae, latents)).sample.float().clamp(-1, 1)
        error = self.preview.decode(latents).sample.float() - target
        background = target.new_tensor(BACKGROUND)[:, None, None] / 127.5 - 1
        foreground = ((target - background).abs() > 0.1).any(dim=1, keepdim=True)
        weight = torch.where(foreground, self.foreground_weight, 1.0)
        return {"loss": (weight * (error.abs() + error.square())).mean()}


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str | Path = "shapes-sd",
    output_dir: Path = Path("runs/preview"),
    num_scenes: int = 8000,
    max_steps: int = 2000,
    batch_size: int = 32,
    seed: int = 0,
    save_steps: int = 500,
    resume: bool = False,
) -> None:
    """Trains on latents of scenes that it draws itself, and saves the decoder in `shapes-preview`."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    vae, preview = AutoencoderKL.from_pretrained(resolve_model(str(model)), subfolder="vae").eval(), make_preview()
    scenes = [scene for _, scene in captioned_scenes(num_scenes, np.random.default_rng(seed))]
    latents = encode(vae, scene_images(scenes)) * vae.config.scaling_factor
    print(f"{num_scenes} scenes in {time.perf_counter() - start:.0f} s")
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=2e-3,
        seed=seed,
        ema_decay=0.995,
        warmup_steps=max_steps // 20,
        decay_steps=max_steps - max_steps // 20,
        save_steps=save_steps,
        resume=resume,
        bf16=True,
    )
    if fit(PreviewObjective(preview, vae), TensorsDataset(latents=latents), config):
        save_model_of_diffusers(preview, output_dir / "shapes-preview")


if __name__ == "__main__":
    cyclopts.run(main)
