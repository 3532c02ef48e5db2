"""Encodes the scenes with the VAE and whitens the latents, one mean and one scale a channel.

Stable Diffusion knows one `scaling_factor` only, so the whitening is folded into the last convolution of the encoder
(`quant_conv`) and the first of the decoder (`post_quant_conv`).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import typer
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, chunk: int = 100) -> Tensor:
    """Means of the posteriors, `(N, 8, 8, 8)`, of uint8 pictures."""
    means = []
    for part in images.split(chunk):
        with torch.autocast("cpu", torch.bfloat16):
            means.append(vae.encode(part / 127.5 - 1.0).latent_dist.mean.float())
    return torch.cat(means)


@torch.no_grad()
def fold_whitening(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Changes `vae` in place so that its latents are those of before, minus `mean`, divided by `std`."""
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight * mean[:, None, None]).sum((1, 2, 3))
    vae.post_quant_conv.weight *= std[:, None, None]


def main(
    scenes: Path = Path("runs/scenes.safetensors"),
    vae: Path = Path("runs/vae"),
    output_dir: Path = Path("runs/whitened"),
    num_scenes: int = 40_000,
) -> None:
    """Writes the whitened VAE and the latents of the first scenes."""
    start = time.perf_counter()
    data, model = load_file(scenes), AutoencoderKL.from_pretrained(vae).eval()
    latents = encode(model, data["images"][:num_scenes])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    fold_whitening(model, mean, std)
    model.save_pretrained(output_dir / "vae")
    whitened = (latents - mean[:, None, None]) / std[:, None, None]
    save_file(
        {"latents": whitened.contiguous(), "prompts": data["prompts"][:num_scenes]}, output_dir / "latents.safetensors"
    )
    print(
        f"{len(latents)} scenes in {time.perf_counter() - start:.0f} s; std was {[round(s, 2) for s in std.tolist()]}"
    )


if __name__ == "__main__":
    typer.run(main)
