"""Skill experts in the shapes world: each alone, merged, chosen by a reward or not, and on each other's skills.

    python examples/shapes/skills.py              # four skills; hours on two cores, goes on where it was stopped
    python examples/shapes/skills.py --smoke      # the same in a minute: only that it runs

Two processes share it: `--shard 0/2` and `--shard 1/2` draw, train and judge the experts of two skills each; then the
command without a shard merges them, judges the rest and reports.

A skill is what the base lacks: half of its training prompts are combinations of which `shapes-sd` has never seen an
image, and half are known to it, so that they are not forgotten. Of each prompt `shapes-sd` draws images itself, and
LoRA experts learn from them: one from the best of n by the reward ("chosen"), one from the first of them ("unchosen",
as many), and, with `--variants chosen unchosen all`, one from all. The experts of a variant are merged with equal
weights. Judged by the rule-based verifier with seeds that all models share, on the prompts of the training with other
noise ("taught"), and on combinations of which neither the experts nor the base have seen an image ("untaught").

Each table has a row a model and a column a skill; an expert in another skill's column is the control. Below it are
paired differences with intervals, clustered by prompt: each expert, and those of other skills, and the base on the
expert's own skill; the merged model and the mean of the experts; the merged model and the base over all skills; chosen
and unchosen, of each expert and merged.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import torch
from diffusers import DiffusionPipeline

from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.durable_files import append_lines, read_json_lines
from fk_reward.models import resolve_model
from fk_reward.pipelines.loading import SHAPES_GUIDANCE
from fk_reward.rewards import load_reward
from fk_reward.shapes import ShapesPrompt, heldout_prompts, parse_prompt, verify
from fk_reward.shapes.prompts import take_turns
from fk_reward.training.skills import (
    Drawing,
    ExpertConfig,
    draw_images,
    merge_adapters,
    prompts_of_shapes,
    read_images,
    train_expert,
)
from fk_reward.value_checks import parse_shard

SKILLS = ("counting", "colors", "position", "color_attr")
KEEP = {"chosen": "best", "unchosen": "first", "all": "all"}
"""Name of the variant -> images of each prompt."""

SIDES = ("taught", "untaught")
"""Which prompts are judged: those of the experts' training, with other noise, or others."""

ADAPTED = (
    *("to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
)
"""Layers of an expert, and the text encoder's attention. With the denoiser's attention alone nothing is learnt here."""

Verdicts = dict[tuple[str, int], float]
"""(Skill, number of the image) -> 1 where the image shows its prompt, else 0."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How large everything is.

    Attributes:
        model: text-to-image model of the shapes world.
        reward: chooses the training images.
        num_prompts: training prompts of a skill; repeated, with other noise, where it has fewer.
        num_candidates: images of each.
        num_kept: images of each that are trained on; of one alone the experts learn the image, not the skill.
        num_steps: scheduler steps of all images.
        num_images: judged images of a model on each side, over all skills; at least 450 for results.
        batch_size: images at once.
        rank: of the experts.
        max_steps: of each training.
        train_batch_size: images of a training step.
        learning_rate: of the experts at first; by a cosine it falls to 0.
        seed: of everything.
        variants: which images are trained on: chosen, unchosen, all.
    """

    model: str = "shapes-sd"
    reward: str = "0.5*shapes-llava-reward-alignment + 0.5*shapes-llava-reward-fidelity"
    num_prompts: int = 112
    num_candidates: int = 16
    num_kept: int = 4
    num_steps: int = 20
    num_images: int = 480
    batch_size: int = 32
    rank: int = 32
    max_steps: int = 300
    train_batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0
    variants: tuple[str, ...] = ("chosen", "unchosen")

    def smoke(self) -> Settings:
        """So small that it only shows that everything runs."""
        return Settings(
            model=self.model, num_prompts=2, num_candidates=2, num_kept=1, num_steps=2, num_images=8, rank=2,
            max_steps=2, train_batch_size=2,
        )  # fmt: skip

    def drawing(self) -> Drawing:
        """Of the training images."""
        return Drawing(
            num_candidates=self.num_candidates,
            num_inference_steps=self.num_steps,
            guidance_scale=SHAPES_GUIDANCE,
            seed=self.seed + 1,
            batch_size=self.batch_size,
        )


def taught_and_not(skill: str) -> tuple[Sequence[ShapesPrompt], Sequence[ShapesPrompt]]:
    """Every second one of the skill's combinations that `shapes-sd` has never seen, and the others."""
    prompts = heldout_prompts(skill)
    return prompts[::2], prompts[1::2]


def training_prompts(skill: str, number: int, seed: int) -> list[str]:
    """Prompts of a skill, one that the base has never seen and one that it knows, in turn until there are so many."""
    new = list(taught_and_not(skill)[0])
    random.Random(seed).shuffle(new)  # noqa: S311 (no secret)
    known = [parse_prompt(text) for text in prompts_of_shapes(skill, seed=seed).prompts]
    return [prompt.text for prompt in take_turns([new, known], number)]


def train_experts(pipe: Any, settings: Settings, out: Path, *, skills: Sequence[str] = SKILLS) -> dict[str, Path]:
    """Draw the images and train the experts; name of each model -> folder of its adapter."""
    reward, adapters = load_reward(settings.reward), {}
    for skill in skills:
        folder, texts = out / skill / "images", training_prompts(skill, settings.num_prompts, settings.seed)
        names = (settings.model, settings.reward)
        for done in draw_images(pipe, reward, texts, folder, drawing=settings.drawing(), names=names):
            print(f"{skill}: {done} of {len(texts)} prompts drawn", flush=True)
        for variant in settings.variants:
            made = train_one(pipe, settings, folder, out / skill / variant, KEEP[variant])
            adapters[f"{skill} ({variant})"] = made
    return adapters


def merge_experts(adapters: dict[str, Path], settings: Settings, out: Path) -> dict[str, Path]:
    """The experts of each variant in one adapter, by the same names."""
    merged = {}
    for variant in settings.variants:
        experts = [adapters[f"{skill} ({variant})"] for skill in SKILLS]
        merge_adapters(experts, out / f"merged-{variant}")
        merged[f"merged ({variant})"] = out / f"merged-{variant}"
    return merged


def train_one(pipe: Any, settings: Settings, images: Path, folder: Path, keep: str) -> Path:
    """Train an expert, or go on with it."""
    config = ExpertConfig(
        rank=settings.rank,
        max_steps=settings.max_steps,
        batch_size=settings.train_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler="cosine",
        target_modules=ADAPTED,
        train_text_encoders=True,
        save_steps=100,
        seed=settings.seed,
    )
    start = time.perf_counter()
    kept = read_images(images, keep=keep, num_kept=1 if keep == "all" else settings.num_kept)
    for step in train_expert(pipe, kept, folder, config=config, resume=True):
        if step.step % 50 == 0:
            print(f"{folder}: step {step.step}, loss {step.loss:.4f}", flush=True)
    print(f"{folder}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
    return folder


def judged_prompts(settings: Settings, side: str) -> list[tuple[str, int, ShapesPrompt]]:
    """Skill, number of the image and prompt of all judged images of a side: prompts of a skill in turn."""
    each = -(-settings.num_images // len(SKILLS))
    prompts = {skill: _prompts_of(skill, settings, side) for skill in SKILLS}
    return [(skill, i, prompts[skill][i % len(prompts[skill])]) for skill in SKILLS for i in range(each)]


def _prompts_of(skill: str, settings: Settings, side: str) -> Sequence[ShapesPrompt]:
    if side == "untaught":
        return taught_and_not(skill)[1]
    return [parse_prompt(text) for text in training_prompts(skill, settings.num_prompts, settings.seed)]


def judge(pipe: Any, settings: Settings, folder: Path, name: str) -> dict[str, Verdicts]:
    """Draw and judge the images of a model, on each side; those that stand in its files are not drawn again."""
    return {side: _judged(pipe, settings, folder / side / f"{name}.jsonl", side) for side in SIDES}


@torch.no_grad()
def _judged(pipe: Any, settings: Settings, file: Path, side: str) -> Verdicts:
    known = {(row["skill"], row["image"]): row["correct"] for _, row in read_json_lines(file)} if file.exists() else {}
    left = [item for item in judged_prompts(settings, side) if item[:2] not in known]
    file.parent.mkdir(parents=True, exist_ok=True)
    for batch in _batches(left, settings.batch_size):
        images = pipe(
            prompt=[prompt.text for _, _, prompt in batch],
            generator=[_generator(settings.seed, skill, image) for skill, image, _ in batch],
            num_inference_steps=settings.num_steps,
            guidance_scale=SHAPES_GUIDANCE,
            output_type="pt",
        ).images
        rows = [
            {
                "skill": skill,
                "image": image,
                "prompt": prompt.text,
                "correct": float(verify(pixels.float(), prompt).correct),
            }
            for (skill, image, prompt), pixels in zip(batch, images, strict=True)
        ]
        append_lines(file, [json.dumps(row) for row in rows])
        known |= {(row["skill"], row["image"]): row["correct"] for row in rows}
    return known


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _generator(seed: int, skill: str, image: int) -> torch.Generator:
    """The same noise for all models."""
    return torch.Generator().manual_seed(1_000_003 * (seed + 7) + 10_007 * SKILLS.index(skill) + image)


def report(verdicts: dict[str, Verdicts], settings: Settings, side: str) -> str:
    """The table of accuracies on one side, and the differences that the method claims."""
    prompts = {(skill, image): prompt.text for skill, image, prompt in judged_prompts(settings, side)}
    lines = ["| model | " + " | ".join(SKILLS) + " | all |", "| --- |" + " ---: |" * (len(SKILLS) + 1)]
    for name, found in verdicts.items():
        cells = [_mean([v for (skill, _), v in found.items() if skill == column]) for column in SKILLS]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in [*cells, _mean(cells)]) + " |")
    lines += ["", "| difference | skills | estimate | interval |", "| --- | --- | ---: | --- |"]
    for label, skills, plus, minus in comparisons(settings.variants):
        keys = [key for key in prompts if key[0] in skills]
        values = [_average(verdicts, plus, key) - _average(verdicts, minus, key) for key in keys]
        found = clustered_bootstrap(values, [prompts[key] for key in keys], strata=[key[0] for key in keys])
        lines.append(
            f"| {label} | {', '.join(skills)} | {found.estimate:+.3f} | [{found.low:+.3f}, {found.high:+.3f}] |"
        )
    lines += ["", f"{len(prompts)} images of {len(set(prompts.values()))} {side} prompts a model."]
    return "\n".join(lines) + "\n"


def comparisons(
    variants: Sequence[str],
) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    """Label, skills, and the models whose mean accuracies are subtracted."""
    for variant in variants:
        experts = tuple(f"{skill} ({variant})" for skill in SKILLS)
        for skill in SKILLS:
            own, others = f"{skill} ({variant})", tuple(e for e in experts if not e.startswith(f"{skill} ("))
            yield f"{own} - base", (skill,), (own,), ("base",)
            yield f"{own} - experts of other skills", (skill,), (own,), others
            yield f"experts of other skills ({variant}) - base", (skill,), others, ("base",)
            yield f"merged ({variant}) - mean of its experts", (skill,), (f"merged ({variant})",), experts
        yield f"merged ({variant}) - base", SKILLS, (f"merged ({variant})",), ("base",)
    for skill, other in itertools.product(SKILLS, variants[1:]):
        first, second = (f"{skill} ({variant})" for variant in (variants[0], other))
        yield f"{first} - {second}", (skill,), (first,), (second,)
    for other in variants[1:]:
        yield f"merged ({variants[0]}) - merged ({other})", SKILLS, (f"merged ({variants[0]})",), (f"merged ({other})",)


def _average(verdicts: dict[str, Verdicts], names: Sequence[str], key: tuple[str, int]) -> float:
    return _mean([verdicts[name][key] for name in names])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(
    settings: Annotated[Settings, cyclopts.Parameter(name="*")] = Settings(),  # noqa: B008 (frozen)
    out: Path = Path("runs/skills"),
    smoke: bool = False,
    shard: str | None = None,
) -> None:
    """Train, merge and judge; `report.md` in `out` is the result.

    Args:
        settings: How large everything is.
        out: Folder of the images, the experts and the verdicts.
        smoke: Two prompts, two steps.
        shard: i/n leaves to this process every n-th skill, and neither merges nor reports.
    """
    settings = settings.smoke() if smoke else settings
    index, count = (0, 1) if shard is None else parse_shard(shard)
    pipe = DiffusionPipeline.from_pretrained(resolve_model(settings.model))
    pipe.set_progress_bar_config(disable=True)
    adapters = train_experts(pipe, settings, out, skills=SKILLS[index::count])
    adapters |= merge_experts(adapters, settings, out) if shard is None else {}
    verdicts = {} if index else {"base": judge(pipe, settings, out / "verdicts", "base")}
    for name, folder in adapters.items():
        pipe.load_lora_weights(str(folder))
        verdicts[name] = judge(pipe, settings, out / "verdicts", name)
        pipe.unload_lora_weights()
        print(f"{name}: judged", flush=True)
    if shard is not None:
        return
    text = "\n".join(report({name: found[side] for name, found in verdicts.items()}, settings, side) for side in SIDES)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cyclopts.run(main)
