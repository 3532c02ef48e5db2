"""Files as `sample_images.py` writes them, with scenes in place of a model's images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file

from fk_reward.shapes import TASKS, Scene, all_prompts, render, sample_scene

IMAGES_A_DRAW = 4


def drawn(prompt, side, rng):
    """Scenes in place of a model's images: two right ones, of which one has red crosses, and two wrong ones."""
    from alignment_pairs import pick
    from prompt_sides import neighbours

    first, second = sample_scene(prompt, rng), sample_scene(prompt, rng)
    if prompt.objects[0].color is None:
        first = Scene(tuple(replace(o, color="red" if o.shape == "cross" else o.color) for o in first.objects))
    wrong = [sample_scene(pick(found, rng), rng) for found in list(neighbours(prompt, side).values())[:1] * 2]
    return render([first, second, *wrong]).mul(255).round().byte()


def write_samples(path, sides, *, deform=False):
    """A file as `sample_images.py` writes it; the corners tell the stage and whether the image became right."""
    from alignment_pairs import malformed
    from prompt_sides import prompts_of

    rng, tensors = np.random.default_rng(3), {"images": [], "prompts": [], "correct": [], "scores": []}
    for side, task in ((side, task) for side in sides for task in TASKS):
        prompt = next((p for p in prompts_of(side, task) if "cross" in p.text), prompts_of(side, task)[0])
        images = drawn(prompt, side, rng)
        if deform:
            images = torch.stack([malformed(image / 255, prompt, rng) for image in images[:2]])
            images = images.repeat(2, 1, 1, 1).mul(255).byte()
        right = torch.tensor([True, True, False, False])
        stages = images[:, None].repeat(1, 9, 1, 1, 1)
        stages[:, :, 0, 0, 0] = torch.arange(9, dtype=torch.uint8)
        stages[:, :, 0, -1, -1] = right[:, None].byte()
        tensors["images"].append(stages)
        tensors["prompts"].append(torch.full((IMAGES_A_DRAW,), all_prompts().index(prompt)))
        tensors["correct"].append(right)
        tensors["scores"].append(torch.where(right, 1.0, 0.5))
    save_file({name: torch.cat(parts) for name, parts in tensors.items()}, path)
