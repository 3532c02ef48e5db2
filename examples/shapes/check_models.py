"""Prints how good the verifier and the models of the shapes world are."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cyclopts
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from prompt_sides import hard_negatives
from scene_data import captioned_scenes, mixed_scene, scene_images
from scene_questions import ABOUT_PLACES, CAPTION_QUESTION, QUESTIONS, Dialogue
from torch import Tensor
from train_clip import blurred
from train_mllm import IGNORED, DialogueObjective, answer_batch
from transformers import CLIPModel, CLIPProcessor

from fk_reward.models import resolve_model
from fk_reward.rewards.llava_reward import load_backbone
from fk_reward.shapes import (
    TASKS,
    Scene,
    ShapesPrompt,
    all_prompts,
    benchmark_prompts,
    render,
    sample_scene,
    true_prompts,
    verify,
)

app = cyclopts.App()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encodes and decodes images in [0, 1]."""
    return (vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)


def right(images: Tensor, prompts: tuple[ShapesPrompt, ...]) -> list[bool]:
    """Verdict on each image."""
    return [verify(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)]


def random_prompts(prompts: tuple[ShapesPrompt, ...], rng: np.random.Generator) -> tuple[ShapesPrompt, ...]:
    """For each prompt another one of its task."""
    others = ([other for other in all_prompts(prompt.task) if other != prompt] for prompt in prompts)
    return tuple(pool[rng.integers(len(pool))] for pool in others)


@app.command(name="verifier")
def check_verifier(model: str = "shapes-sd", num_scenes: int = 2000, seed: int = 2, chunk: int = 50) -> None:
    """Draws scenes of both splits; judges them as rendered, after the VAE, and against another prompt of the task."""
    rng, start = np.random.default_rng(seed), time.perf_counter()
    vae = AutoencoderKL.from_pretrained(resolve_model(model), subfolder="vae").eval()
    both = zip(benchmark_prompts(num_scenes, "heldout"), benchmark_prompts(num_scenes, "validation"), strict=True)
    prompts = tuple(islice((prompt for pair in both for prompt in pair), num_scenes))
    rows: dict[str, list[bool]] = {"rendered": [], "after the VAE": [], "rendered, another prompt of the task": []}
    for i in range(0, num_scenes, chunk):
        part = prompts[i : i + chunk]
        images = render([sample_scene(prompt, rng) for prompt in part])
        rows["rendered"] += right(images, part)
        rows["after the VAE"] += right(round_trip(vae, images), part)
        rows["rendered, another prompt of the task"] += right(images, random_prompts(part, rng))
    for name, verdicts in rows.items():
        by_task = {t: np.mean([v for v, p in zip(verdicts, prompts, strict=True) if p.task == t]) for t in TASKS}
        print(
            f"{name}: {np.mean(verdicts):.4f} of {num_scenes}; " + ", ".join(f"{t} {m:.3f}" for t, m in by_task.items())
        )
    print(f"{time.perf_counter() - start:.0f} s")


def draw(pipe: StableDiffusionPipeline, texts: list[str], seeds: list[int], *, steps: int, guidance: float) -> Tensor:
    """Images `(B, 3, 64, 64)` in [0, 1]; each has its own seed, so that it does not depend on the batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(
        texts, num_inference_steps=steps, guidance_scale=guidance, eta=1.0, generator=generators, output_type="pt"
    )
    return output.images


def save_grid(images: Tensor, path: Path, columns: int = 12) -> None:
    """Writes images row by row into one PNG."""
    images = images[: len(images) // columns * columns].unflatten(0, (-1, columns))
    sheet = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(path)


@app.command(name="pipeline")
def check_pipeline(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str = "shapes-sd",
    num_prompts: int = 192,
    split: str = "heldout",
    steps: int = 50,
    guidance: float = 3.0,
    chunk: int = 48,
    first_seed: int = 0,
    grid: Path | None = None,
) -> None:
    """Draws one image a prompt with DDIM, eta 1; prompt number i is drawn with seed `first_seed + i`."""
    start = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(resolve_model(model))
    pipe.set_progress_bar_config(disable=True)
    prompts = benchmark_prompts(num_prompts, split)
    parts = [range(i, min(i + chunk, num_prompts)) for i in range(0, num_prompts, chunk)]
    images = torch.cat(
        [
            draw(pipe, [prompts[i].text for i in part], [first_seed + i for i in part], steps=steps, guidance=guidance)
            for part in parts
        ]
    )
    for rule in (True, False):
        right = [verify(image, prompt, strict=rule).correct for image, prompt in zip(images, prompts, strict=True)]
        by_task = {t: np.mean([r for r, p in zip(right, prompts, strict=True) if p.task == t]) for t in TASKS}
        line = ", ".join(f"{t} {mean:.2f}" for t, mean in by_task.items())
        print(f"{'strict' if rule else 'lenient'}: {np.mean(right):.3f} of {num_prompts} {split} prompts; {line}")
    if grid is not None:
        save_grid(images, grid)
    print(f"{time.perf_counter() - start:.0f} s")


def false_captions(prompt: ShapesPrompt, scene: Scene) -> dict[str, list[str]]:
    """Texts of the hard negatives of a prompt that are not true of the scene, by kind of difference."""
    true = true_prompts(scene)
    kinds = {kind: [p.text for p in found if p not in true] for kind, found in hard_negatives(prompt).items()}
    return {kind: texts for kind, texts in kinds.items() if texts}


@torch.no_grad()
def similarities(clip: CLIPModel, processor: CLIPProcessor, image: Tensor, texts: list[str]) -> Tensor:
    """Cosine similarities of one image `(3, 64, 64)` in [0, 1] to texts."""
    inputs = processor(text=texts, images=image, do_rescale=False, padding="max_length", return_tensors="pt")
    output = clip(**{name: value for name, value in inputs.items() if name != "attention_mask"})
    return output.logits_per_image[0] / clip.logit_scale.exp()


@app.command(name="clip")
def check_clip(
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
    batch = answer_batch(objective.backbone, scene_images(scenes), dialogues)
    labels, images = batch.pop("labels"), batch.pop("images")
    states = objective.states(objective.patches(images / 255), **batch)
    hits = objective.logits(states[-1], labels).argmax(-1) == labels[labels != IGNORED]
    return [bool(part.all()) for part in hits.split((labels != IGNORED).sum(1).tolist())]


@app.command(name="mllm")
def check_mllm(model: str = "shapes-mllm", num_scenes: int = 300, batch_size: int = 50, seed: int = 5) -> None:
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
    app()
