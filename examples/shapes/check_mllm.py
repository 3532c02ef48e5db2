"""Prints how many questions about new pictures `shapes-mllm` answers rightly, by the kind of question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import typer
from hard_negatives import hard_negatives
from scene_data import captioned_scenes, pictures
from scene_questions import ABOUT_PLACES, CAPTION_QUESTION, QUESTIONS, Dialogue
from scene_table import mixed_scene
from train_mllm import IGNORED, DialogueObjective, answer_batch

from fk_reward.models import resolve_model
from fk_reward.rewards.llava_reward import load_backbone
from fk_reward.shapes import Scene, benchmark_prompts, sample_scene, true_prompts

HELDOUT = "ask_whether_it_shows, held-out captions"


def questions(num_scenes: int, rng: np.random.Generator) -> Iterator[tuple[str, Scene, Dialogue]]:
    """A question of each kind about each scene; half of the scenes are of any objects."""
    scenes = [scene for _, scene in captioned_scenes(num_scenes // 2, rng)]
    scenes += [mixed_scene(rng) for _ in range(num_scenes - len(scenes))]
    for scene in scenes:
        for ask in {**QUESTIONS, **ABOUT_PLACES}:
            yield ask.__name__, scene, ask(scene, rng)


def heldout_questions(num_scenes: int, rng: np.random.Generator) -> Iterator[tuple[str, Scene, Dialogue]]:
    """Whether a caption that was never trained on is true, and one that differs in one respect."""
    for prompt in benchmark_prompts(num_scenes):
        scene = sample_scene(prompt, rng)
        near = [p for found in hard_negatives(prompt).values() for p in found if p not in true_prompts(scene)]
        for caption, answer in ((prompt, "yes"), (near[rng.integers(len(near))], "no")):
            yield f"{HELDOUT}, {answer}", scene, [(f"{CAPTION_QUESTION}{caption.text}?", answer)]


@torch.no_grad()
def right_answers(objective: DialogueObjective, scenes: list[Scene], dialogues: list[Dialogue]) -> list[bool]:
    """Whether every token of the one answer about each scene is the likeliest one."""
    batch = answer_batch(objective.backbone, pictures(scenes), dialogues)
    labels, images = batch.pop("labels"), batch.pop("images")
    hits = objective.logits(images / 255, labels, **batch).argmax(-1) == labels[labels != IGNORED]
    return [bool(part.all()) for part in hits.split((labels != IGNORED).sum(1).tolist())]


def main(model: str = "shapes-mllm", num_scenes: int = 300, batch_size: int = 50, seed: int = 5) -> None:
    """Asks about scenes of training prompts, of any objects, and of held-out prompts."""
    objective = DialogueObjective(load_backbone(Path(resolve_model(model)), torch_dtype=torch.float32, num_crops=1))
    objective.eval()
    rng = np.random.default_rng(seed)
    asked = [item for item in (*questions(num_scenes, rng), *heldout_questions(num_scenes, rng)) if item[2]]
    for name in dict.fromkeys(kind for kind, _, _ in asked):
        _, scenes, dialogues = map(list, zip(*(item for item in asked if item[0] == name), strict=True))
        starts = range(0, len(scenes), batch_size)
        hits = [
            hit
            for i in starts
            for hit in right_answers(objective, scenes[i : i + batch_size], dialogues[i : i + batch_size])
        ]
        print(f"{name}: {np.mean(hits):.3f} of {len(hits)}")


if __name__ == "__main__":
    typer.run(main)
