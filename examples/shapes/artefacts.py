"""Ways to break an image: what poor image models and autoencoders do to shapes, and what cameras do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from train_clip import blurred

from fk_reward.models import resolve_model
from fk_reward.shapes import BACKGROUND
from fk_reward.shapes.recognition import segments

BACKGROUND_PAINT = torch.tensor(BACKGROUND)[:, None, None] / 255
MIN_CHANGE = 0.035
"""Least root mean square change of a broken image, channels in [0, 1], for the damage to be seen."""


def pixel_grid(image: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows `(H, W)` of the pixels of an image."""
    height, width = image.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    return columns, rows


def random_mask(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Pixels `(H, W)` bool of an object of the image, with its soft edge; none where there is no object."""
    found = segments(image)
    if not found:
        return torch.zeros(image.shape[-2:], dtype=torch.bool)
    return F.max_pool2d(found[rng.integers(len(found))].mask[None].float(), 3, 1, 1)[0] > 0


def centre(mask: Tensor) -> tuple[float, float, float]:
    """Column and row of the centroid of a mask, and the radius of the disc that has its area."""
    rows, columns = mask.nonzero(as_tuple=True)
    return columns.float().mean().item(), rows.float().mean().item(), (mask.sum().item() / torch.pi) ** 0.5


def _across(image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, tuple[float, float]]:
    """Signed distance `(H, W)` to a random line through an object near its centre, and the line's direction."""
    x, y, radius = centre(mask)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * radius
    columns, rows = pixel_grid(image)
    distance = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle) - offset
    return distance, (-np.sin(angle), np.cos(angle))


def bitten(image: Tensor, rng: np.random.Generator, depth: tuple[float, float] = (0.35, 0.7)) -> Tensor:
    """A disc, of a radius in units of the object's, is taken out of the edge of an object."""
    mask = random_mask(image, rng)
    if not mask.any():
        return image
    x, y, radius = centre(mask)
    angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(*depth) * radius
    columns, rows = pixel_grid(image)
    away = torch.hypot(columns - x - 0.8 * radius * np.cos(angle), rows - y - 0.8 * radius * np.sin(angle))
    return torch.lerp(image, BACKGROUND_PAINT, (size - away + 0.5).clamp(0, 1) * mask)


def cut(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A gap of 2 to 4 pixels runs through an object."""
    mask = random_mask(image, rng)
    if not mask.any():
        return image
    distance, _ = _across(image, mask, rng)
    return torch.lerp(image, BACKGROUND_PAINT, (rng.uniform(1, 2) - distance.abs() + 0.5).clamp(0, 1) * mask)


def shifted_half(image: Tensor, rng: np.random.Generator) -> Tensor:
    """One half of an object slides along a line through it, by 2 to 5 pixels."""
    mask = random_mask(image, rng)
    if not mask.any():
        return image
    distance, direction = _across(image, mask, rng)
    half = mask & (distance > 0)
    by = [round(float(part * rng.uniform(2, 5))) for part in reversed(direction)]
    moved, there = torch.roll(image, by, (1, 2)), torch.roll(half, by, (0, 1))
    return torch.where(there, moved, torch.where(half, BACKGROUND_PAINT, image))


def warped(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Everything is bent by a smooth field of displacements of 2 to 4 pixels (root mean square)."""
    coarse = torch.from_numpy(rng.standard_normal((1, 2, 6, 6))).float()
    field = F.interpolate(coarse, image.shape[-2:], mode="bicubic", align_corners=True)
    field = field - field.mean((2, 3), keepdim=True)
    field = field * rng.uniform(2, 4) / field.square().mean().sqrt() * 2 / image.shape[-1]
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, *image.shape], align_corners=False) + field.permute(0, 2, 3, 1)
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


BREAKS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "bite": bitten,
    "cut": cut,
    "shift": shifted_half,
    "warp": warped,
}


def break_shape(image: Tensor, rng: np.random.Generator, kind: str) -> Tensor:
    """Breaks an image in one of the ways of `BREAKS` until it shows."""
    for _ in range(50):
        broken = BREAKS[kind](image, rng)
        if (broken - image).square().mean().sqrt() >= MIN_CHANGE:
            return broken
    raise ValueError(f"A {kind} changes nothing of this image: does it show any object?")


def out_of_focus(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Gaussian blur of `(B, 3, H, W)` images by 0.9 to 3 pixels."""
    return blurred(images, torch.from_numpy(rng.uniform(0.9, 3.0, len(images))).float())


def noisy(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Gaussian noise of 0.05 to 0.25 on `(B, 3, H, W)` images."""
    sigmas = torch.from_numpy(rng.uniform(0.05, 0.25, len(images))).float()[:, None, None, None]
    return (images + sigmas * torch.from_numpy(rng.standard_normal(images.shape)).float()).clamp(0, 1)


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
    """Encodes `(B, 3, 64, 64)` images in [0, 1], disturbs the latents and decodes them."""
    parts = []
    for part in images.split(CHUNK):
        latents = vae.encode(part * 2 - 1).latent_dist.mean
        parts.append(vae.decode(_disturbed(latents, rng)).sample / 2 + 0.5)
    return torch.cat(parts).clamp(0, 1)
