"""Draws prompts with `shapes-sd` and keeps, of each picture, what it was predicted to become at earlier steps."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import typer
from drawn_pictures import NUM_STEPS, PREDICTIONS
from safetensors.torch import save_file
from torch import Tensor

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.shapes import ShapesPrompt, all_prompts, benchmark_prompts, verify


class Recorder:
    """A reward that finds all pictures equal and keeps them."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Keeps `(B, 3, 64, 64)` pictures in [0, 1] as uint8; all score 0."""
        self.images.append(images.mul(255).round().byte().cpu())
        return torch.zeros(len(images), device=images.device)


def draw(
    pipe: FKSteeringPipeline, recorder: Recorder, prompts: dict[int, ShapesPrompt], *, per_prompt: int, seed: int
) -> Tensor:
    """Draws `per_prompt` pictures of each prompt: `(P, K, S, 3, 64, 64)`, the predictions and then the picture."""
    recorder.images.clear()
    pipe(
        [prompt.text for prompt in prompts.values()],
        num_particles=per_prompt,
        generator=particle_generators(seed, list(prompts), per_prompt),
        num_inference_steps=NUM_STEPS,
        guidance_scale=3.0,
        output_type="pt",
    )
    return torch.stack(recorder.images, dim=1).unflatten(0, (len(prompts), per_prompt))


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str = "shapes-sd",
    output: Path = Path("runs/samples/train.safetensors"),
    split: str = "validation",
    num_prompts: int = 600,
    first_prompt: int = 0,
    per_prompt: int = 8,
    prompts_per_call: int = 8,
    seed: int = 1000,
) -> None:
    """Writes pictures `(N, S, 3, 64, 64)`, the number of their prompt among all and the verifier's verdict on the last.

    `split` is `validation` for training prompts and `heldout` for the others; the tasks take turns.
    """
    recorder, start = Recorder(), time.perf_counter()
    pipe = FKSteeringPipeline.from_pretrained(model, reward=recorder, steering=PREDICTIONS)
    pipe.set_progress_bar_config(disable=True)
    chosen = dict(enumerate(benchmark_prompts(num_prompts, split)[first_prompt:], first_prompt))
    parts = []
    for i in range(first_prompt, num_prompts, prompts_per_call):
        call = {k: chosen[k] for k in range(i, min(i + prompts_per_call, num_prompts))}
        parts.append(draw(pipe, recorder, call, per_prompt=per_prompt, seed=seed).flatten(0, 1))
    images = torch.cat(parts)
    prompts = [prompt for prompt in chosen.values() for _ in range(per_prompt)]
    verdicts = [verify(image / 255, prompt) for image, prompt in zip(images[:, -1], prompts, strict=True)]
    index = {prompt: i for i, prompt in enumerate(all_prompts())}
    output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "images": images,
        "prompts": torch.tensor([index[prompt] for prompt in prompts]),
        "correct": torch.tensor([verdict.correct for verdict in verdicts]),
        "scores": torch.tensor([verdict.score for verdict in verdicts]),
    }
    save_file(tensors, output)
    share, minutes = tensors["correct"].float().mean(), (time.perf_counter() - start) / 60
    typer.echo(f"{len(images)} pictures, {share:.3f} of them as their prompts say; {minutes:.1f} minutes")


if __name__ == "__main__":
    typer.run(main)
