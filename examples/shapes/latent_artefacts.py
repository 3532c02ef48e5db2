"""Artefacts of autoencoders: pictures decoded from latents that were disturbed."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from fk_reward.models import resolve_model

CHUNK = 64


def load_vae() -> AutoencoderKL:
    """The autoencoder of `shapes-sd`, in float32."""
    return AutoencoderKL.from_pretrained(resolve_model("shapes-sd"), subfolder="vae").float().eval()


def _disturbed(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise in half of the latents, of 0.35 to 1 of their standard deviation; the others are made coarse."""
    batch = len(latents)
    strength = torch.from_numpy(rng.uniform(0.35, 1.0, batch)).float()[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(latents.shape)).float()
    coarse = F.interpolate(F.avg_pool2d(latents, 2), scale_factor=2, mode="bilinear")
    is_coarse = torch.from_numpy(rng.random(batch) < 0.5)[:, None, None, None]
    return torch.where(is_coarse, torch.lerp(latents, coarse, strength), latents + strength * noise)


@torch.no_grad()
def badly_decoded(images: Tensor, rng: np.random.Generator, vae: AutoencoderKL) -> Tensor:
    """Encodes `(B, 3, 64, 64)` pictures in [0, 1], disturbs the latents and decodes them."""
    parts = []
    for part in images.split(CHUNK):
        latents = vae.encode(part * 2 - 1).latent_dist.mean
        parts.append(vae.decode(_disturbed(latents, rng)).sample / 2 + 0.5)
    return torch.cat(parts).clamp(0, 1)
