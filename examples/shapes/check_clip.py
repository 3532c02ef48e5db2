"""Prints how often `shapes-clip` ranks the true caption of a held-out scene above all that differ in one respect."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
import typer
from hard_negatives import hard_negatives
from torch import Tensor
from train_clip import blurred
from transformers import CLIPModel, CLIPProcessor

from fk_reward.models import resolve_model
from fk_reward.shapes import Scene, ShapesPrompt, benchmark_prompts, render, sample_scene, true_prompts


def false_captions(prompt: ShapesPrompt, scene: Scene) -> dict[str, list[str]]:
    """Texts of the hard negatives of a prompt that are not true of the scene, by kind of difference."""
    true = true_prompts(scene)
    kinds = {kind: [p.text for p in found if p not in true] for kind, found in hard_negatives(prompt).items()}
    return {kind: texts for kind, texts in kinds.items() if texts}


@torch.no_grad()
def similarities(clip: CLIPModel, processor: CLIPProcessor, image: Tensor, texts: list[str]) -> Tensor:
    """Cosine similarities of one picture `(3, 64, 64)` in [0, 1] to texts."""
    inputs = processor(text=texts, images=image, do_rescale=False, padding="max_length", return_tensors="pt")
    output = clip(**{name: value for name, value in inputs.items() if name != "attention_mask"})
    return output.logits_per_image[0] / clip.logit_scale.exp()


def main(
    model: str = "shapes-clip", num_scenes: int = 300, split: str = "heldout", blur: float = 0.0, seed: int = 3
) -> None:
    """Ranks captions of rendered scenes, blurred by `blur` pixels if asked."""
    folder, rng = resolve_model(model), np.random.default_rng(seed)
    clip, processor = CLIPModel.from_pretrained(folder).float().eval(), CLIPProcessor.from_pretrained(folder)
    ranks: dict[str, list[bool]] = defaultdict(list)
    for prompt in benchmark_prompts(num_scenes, split):
        scene = sample_scene(prompt, rng)
        image = render([scene])
        image = blurred(image, torch.tensor([blur])) if blur else image
        kinds = false_captions(prompt, scene)
        texts = [prompt.text, *(text for found in kinds.values() for text in found)]
        scores = dict(zip(texts, similarities(clip, processor, image[0], texts), strict=True))
        for kind, found in kinds.items():
            ranks[f"{prompt.task} / {kind}"].append(all(scores[prompt.text] > scores[text] for text in found))
        ranks[f"{prompt.task} / all of these"].append(all(scores[prompt.text] > scores[text] for text in texts[1:]))
        ranks["overall"].append(ranks[f"{prompt.task} / all of these"][-1])
    for name, right in sorted(ranks.items()):
        print(f"{name}: {np.mean(right):.3f} of {len(right)}")


if __name__ == "__main__":
    typer.run(main)
