"""Makes the scenes that the models are trained on: captioned, of any objects, read off drawn images, or as latents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import cyclopts
import numpy as np
import torch
from diffusers import AutoencoderKL
from precision import has_fast_bfloat16
from safetensors.torch import load_file, save_file
from sample_images import STEPS, Draw, load_draws, on_side
from scene_data import MAX_OBJECTS, captioned_scenes, mixed_scene, scene_images, to_table
from torch import Tensor

from fk_reward.shapes import DetectedObject, Scene, SceneObject, all_prompts, true_prompts, verify

app = cyclopts.App()


MAX_TRUE_PROMPTS = 8


def true_prompt_indices(scene: Scene, index: dict) -> list[int]:
    """Indices of the prompts that a scene satisfies, padded with -1."""
    found = sorted(index[prompt] for prompt in true_prompts(scene))
    return found + [-1] * (MAX_TRUE_PROMPTS - len(found))


@app.command(name="captioned")
def make_captioned(output: Path = Path("runs/scenes.safetensors"), num_scenes: int = 80_000, seed: int = 1) -> None:
    """Draws and renders scenes of training prompts."""
    start = time.perf_counter()
    index = {prompt: i for i, prompt in enumerate(all_prompts())}
    prompts, scenes = zip(*captioned_scenes(num_scenes, np.random.default_rng(seed)), strict=True)
    tensors = {
        "images": scene_images(list(scenes)),
        "prompts": torch.tensor([index[prompt] for prompt in prompts], dtype=torch.int16),
        "true_prompts": torch.tensor([true_prompt_indices(scene, index) for scene in scenes], dtype=torch.int16),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output)
    print(f"{num_scenes} scenes in {time.perf_counter() - start:.0f} s")


@app.command(name="mixed")
def make_mixed(output: Path = Path("runs/mixed_scenes.safetensors"), num_scenes: int = 60_000, seed: int = 11) -> None:
    """Writes `images` `(N, 3, 64, 64)` uint8 and `objects`, the table of `scene_data.py`."""
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    scenes = [scene for _, scene in captioned_scenes(num_scenes // 2, rng)]
    scenes += [mixed_scene(rng) for _ in range(num_scenes - len(scenes))]
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": scene_images(scenes), "objects": to_table(scenes)}, output)
    print(f"{num_scenes} scenes in {time.perf_counter() - start:.0f} s")


FIRST_STAGE = STEPS.index(25)
"""Images predicted at earlier steps are too blurred to be read."""


def as_scene(found: Sequence[DetectedObject]) -> Scene:
    """The objects seen in an image; none where one of them has no shape."""
    if len(found) > MAX_OBJECTS:
        return Scene(())
    objects = [_as_drawn(obj, obj.shape) for obj in found if obj.shape is not None]
    return Scene(tuple(objects) if len(objects) == len(found) else ())


def _as_drawn(obj: DetectedObject, shape: str) -> SceneObject:
    return SceneObject(shape, obj.color, x=obj.x, y=obj.y, size=(obj.area / torch.pi) ** 0.5)


def rows_of(draw: Draw) -> dict[str, Tensor]:
    """Images of a draw with their objects, the number of their prompt and whether they show it."""
    images = draw.images[:, FIRST_STAGE:].flatten(0, 1)
    verdicts = [verify(image / 255, draw.prompt) for image in images]
    return {
        "images": images,
        "objects": to_table([as_scene(verdict.objects) for verdict in verdicts]),
        "prompts": torch.full((len(images),), all_prompts().index(draw.prompt)),
        "correct": torch.tensor([verdict.correct for verdict in verdicts]),
    }


@app.command(name="drawn")
def make_drawn(
    samples: list[Path],
    output: Path = Path("runs/drawn_scenes.safetensors"),
) -> None:
    """Writes `images` `(N, 3, 64, 64)` uint8, `objects` (the table of `scene_data.py`), `prompts` and `correct`.

    Only images of prompts on which adapters are trained, neither validated nor tested.

    Args:
        samples: Files of sample_images.py, of training prompts.
        output: The file to write.
    """
    start = time.perf_counter()
    rows = [rows_of(draw) for draw in on_side(load_draws(samples), "train")]
    tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output)
    read, correct = (tensors["objects"][:, 0, 0] >= 0).float().mean(), tensors["correct"].float().mean()
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(tensors['images'])} images, {read:.2f} of them read, {correct:.2f} right; {minutes:.1f} minutes")


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, chunk: int = 100) -> Tensor:
    """Means of the posteriors, `(N, 4, 16, 16)`, of uint8 images."""
    means = []
    for part in images.split(chunk):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu")):
            means.append(vae.encode(part / 127.5 - 1.0).latent_dist.mean.float())
    return torch.cat(means)


@torch.no_grad()
def fold_whitening(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Changes `vae` in place so that its latents are those of before, minus `mean`, divided by `std`."""
    # Stable Diffusion has one `scaling_factor` for all channels, so the whitening goes into the last convolution of the
    # encoder and the first of the decoder.
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight * mean[:, None, None]).sum((1, 2, 3))
    vae.post_quant_conv.weight *= std[:, None, None]


@app.command(name="latents")
def make_latents(
    scenes: Path = Path("runs/scenes.safetensors"),
    vae: Path = Path("runs/vae"),
    output_dir: Path = Path("runs/whitened"),
    num_scenes: int = 80_000,
) -> None:
    """Writes the whitened VAE and the latents of the first scenes."""
    start = time.perf_counter()
    data, model = load_file(scenes), AutoencoderKL.from_pretrained(vae).eval()
    latents = encode(model, data["images"][:num_scenes])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    fold_whitening(model, mean, std)
    model.save_pretrained(output_dir / "vae")
    whitened = (latents - mean[:, None, None]) / std[:, None, None]
    tensors = {"latents": whitened.half().contiguous(), "prompts": data["true_prompts"][:num_scenes].contiguous()}
    save_file(tensors, output_dir / "latents.safetensors")
    print(
        f"{len(latents)} scenes in {time.perf_counter() - start:.0f} s; std was {[round(s, 2) for s in std.tolist()]}"
    )


if __name__ == "__main__":
    app()
