"""Trains the VAE of `shapes-sd`: images to 16x16 latents of 4 channels and back."""

from __future__ import annotations

from pathlib import Path

import cyclopts
import torch
from diffusers import AutoencoderKL
from fit import FitConfig, fit
from safetensors.torch import load_file
from scene_data import TensorsDataset
from torch import Tensor, nn

from fk_reward.shapes import BACKGROUND


def make_vae() -> AutoencoderKL:
    """The autoencoder, untrained."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


class VAEObjective(nn.Module):
    """Reconstruction (L1 + L2, pixels of objects weighted 4 to 1; L1 of the gradients) and a little KL divergence.

    The gradients (differences of neighbouring pixels) are what makes edges sharp and the colours between them flat.
    """

    def __init__(self, vae: AutoencoderKL, foreground_weight: float = 4.0, kl_weight: float = 1e-3) -> None:
        super().__init__()
        self.vae, self.foreground_weight, self.kl_weight = vae, foreground_weight, kl_weight

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes and decodes `(B, 3, 64, 64)` uint8 images."""
        target = images.float() / 127.5 - 1.0
        posterior = self.vae.encode(target).latent_dist
        error = self.vae.decode(posterior.sample()).sample.float() - target
        background = images.new_tensor(BACKGROUND)[:, None, None]
        foreground = (images != background).any(dim=1, keepdim=True)
        weight = torch.where(foreground, self.foreground_weight, 1.0)
        reconstruction = (weight * (error.abs() + error.square())).mean()
        edges = sum(error.diff(dim=dim).abs().mean() for dim in (-1, -2))
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": reconstruction + edges + self.kl_weight * divergence}


def main(
    scenes: Path = Path("runs/scenes.safetensors"),
    output_dir: Path = Path("runs/vae"),
    max_steps: int = 3000,
    batch_size: int = 16,
    seed: int = 0,
    save_steps: int = 100,
    resume: bool = False,
) -> None:
    """Trains on the scenes that `make_scenes.py` wrote."""
    torch.manual_seed(seed)
    vae = make_vae()
    dataset = TensorsDataset(images=load_file(scenes)["images"])
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=1.5e-3,
        seed=seed,
        ema_decay=0.998,
        warmup_steps=max_steps // 20,
        decay_steps=max_steps * 3 // 5,
        save_steps=save_steps,
        resume=resume,
        bf16=True,
    )
    if fit(VAEObjective(vae), dataset, config):
        vae.save_pretrained(output_dir)


if __name__ == "__main__":
    cyclopts.run(main)
