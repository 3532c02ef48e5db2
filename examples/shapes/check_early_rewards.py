"""Prints how early a reward knows: its scores of predicted images against those of the finished ones, by step."""

from __future__ import annotations

import time

import torch
import typer
from torch import Tensor

from fk_reward import FKSteeringPipeline
from fk_reward.shapes import benchmark_prompts, verify


def within_prompt_correlation(first: Tensor, second: Tensor) -> float:
    """Correlation of two (P, K) tables after each prompt's mean is removed."""
    first, second = (table - table.mean(dim=1, keepdim=True) for table in (first.double(), second.double()))
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def main(reward: str = "shapes-clipscore", num_prompts: int = 60, num_particles: int = 8, steps: int = 50) -> None:
    """Draws K particles a prompt without resampling (ESS threshold 0) and scores them on the way."""
    start = time.perf_counter()
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=reward)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "pt", "ess_threshold": 0.0}
    tables, verdicts = [], []
    for index, prompt in enumerate(benchmark_prompts(num_prompts)):
        generator = torch.Generator().manual_seed(index)
        counts = {"num_particles": num_particles, "num_images_per_prompt": num_particles}
        out = pipe(prompt.text, generator=generator, **counts, **settings)
        tables.append(torch.cat([step.rewards for step in out.trace.steps]))
        order = out.trace.selected[0]
        verdict = torch.zeros(num_particles)
        verdict[order] = torch.tensor([float(verify(image, prompt).correct) for image in out.images])
        verdicts.append(verdict)
    rewards, correct = torch.stack(tables, dim=1), torch.stack(verdicts)
    for step, table in zip(out.trace.steps, rewards, strict=True):
        known = within_prompt_correlation(table, rewards[-1]), within_prompt_correlation(table, correct)
        name = "finished" if step.final else f"step {step.step}"
        print(f"{name}: correlation {known[0]:.2f} with the final reward, {known[1]:.2f} with the verifier")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
