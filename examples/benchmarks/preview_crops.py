"""Fewer crops on the way: what LLaVA-Reward saves at full size, and whether it orders predictions of images alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.recording import EachReward, ScoreAll
from fk_reward.benchmarks.report import Column, markdown_table, show_table
from fk_reward.benchmarks.rewards.costs import PROMPT
from fk_reward.cli import run_script
from fk_reward.planning.full_size_rewards import random_reward
from fk_reward.planning.meta_device import count_flops
from fk_reward.rewards import load_reward
from fk_reward.search.replay.records import rank_correlations
from fk_reward.shapes import benchmark_prompts
from fk_reward.terminal import write_document
from fk_reward.value_checks import parse_integers, whole_number

COUNTED = (
    Column("crops", "crops at most", "{:d}"),
    Column("tokens", "tokens of a row", "{:,d}"),
    Column("gflops", "GFLOP an image", "{:,.0f}"),
    Column("share", "of 16 crops", "{:.2f}"),
)
MEASURED = (
    Column("step", "after step", "{:d}"),
    Column("alike", "pairs ordered alike", "{:.3f} ± {:.3f}", ("alike_error",)),
    Column("correlation", "rank correlation", "{:.3f} ± {:.3f}", ("correlation_error",)),
)

_OFFICIAL = 16
_REWARD = "shapes-llava-reward-alignment"


def counted_rows(crops: Sequence[int], side: int) -> Iterator[dict[str, Any]]:
    """Tokens and operations of Phi-3.5-vision's LLaVA-Reward for a square image, by the number of crops.

    Args:
        crops: numbers of crops.
        side: of the image in pixels.
    """
    most = _flops(_OFFICIAL, side)[1]
    for number in crops:
        tokens, flops = _flops(number, side)
        yield {"crops": number, "tokens": tokens, "gflops": flops / 1e9, "share": flops / most}


@cache  # that of the official number is a row, too
def _flops(crops: int, side: int) -> tuple[int, int]:
    """Tokens of a row and operations of an image, counted on the meta device."""
    reward = random_reward("phi3_v", full_size=True, device="meta", num_crops=crops, dimensions=("alignment",))
    inputs = reward.model.backbone.prepare([torch.zeros(3, side, side)], [PROMPT])
    return inputs.input_ids.shape[1], count_flops(reward, side, PROMPT)


def order_rows(
    crops: tuple[int, int], *, num_prompts: int, num_particles: int, num_inference_steps: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """How alike two numbers of crops order predictions of one prompt, after every fourth step of plain trajectories.

    Args:
        crops: the two numbers.
        num_prompts: of the shapes benchmark.
        num_particles: trajectories of a prompt.
        num_inference_steps: scheduler steps.
        seed: of the trajectories.

    Returns:
        For each step means over the prompts, with standard errors; the last step is the finished image.
    """
    both = EachReward({str(number): load_reward(_REWARD, num_crops=number) for number in crops})
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=both)
    pipe.set_progress_bar_config(disable=True)
    steps = tuple(range(3, num_inference_steps - 1, 4))
    scores = []
    for place, prompt in enumerate(prompt.text for prompt in benchmark_prompts(num_prompts)):
        output = pipe(
            prompt,
            search=ScoreAll(num_particles=num_particles, steps=steps),
            generator=particle_generators(seed, [place], num_particles),
            num_inference_steps=num_inference_steps,
        )
        parts = output.trace.reward_parts()
        scores.append(torch.stack([parts[str(number)] for number in crops], dim=-1).numpy())
    values = np.stack(scores)  # prompts, steps, particles, numbers of crops
    for place, step in enumerate([*steps, num_inference_steps - 1]):
        alike, correlation = pairs_alike(values[:, place]), rank_correlations(values[:, place])[:, 0]
        yield {"step": step + 1, **_mean("alike", alike), **_mean("correlation", correlation)}


def pairs_alike(values: np.ndarray) -> np.ndarray:
    """Share of the pairs of each prompt that two columns order alike; a tie in either is half.

    Args:
        values: (P, S, 2).

    Returns:
        (P,) in [0, 1].

    Example:
        >>> pairs_alike(np.array([[[1.0, 1.0], [2.0, 2.0], [3.0, 1.5]]])).round(3).tolist()
        [0.667]

    P: prompts, S: images of each.
    """
    first, second = np.triu_indices(values.shape[1], k=1)
    signs = np.sign(values[:, first] - values[:, second])
    return (0.5 + 0.5 * signs[..., 0] * signs[..., 1]).mean(axis=1)


def _mean(key: str, values: np.ndarray) -> dict[str, float]:
    error = values.std(ddof=1) / len(values) ** 0.5
    return {key: float(values.mean()), f"{key}_error": float(error)}


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    crops: str = "1,4,16",
    side: int = 1024,
    num_prompts: int = 24,
    num_particles: int = 8,
    num_inference_steps: int = 20,
    seed: int = 0,
    markdown: bool = False,
) -> None:
    """Count what fewer crops save at full size, and measure on the shapes model how alike 1 and 4 crops order images.

    Args:
        crops: Numbers of crops that are counted, separated by commas.
        side: Height and width of the counted image in pixels.
        num_prompts: Prompts of the shapes world; at least 2.
        num_particles: Trajectories of each prompt.
        num_inference_steps: Steps of the scheduler.
        seed: Seed of the trajectories.
        markdown: Print Markdown and nothing else.
    """
    whole_number("--num-prompts", num_prompts, minimum=2)
    whole_number("--num-inference-steps", num_inference_steps, minimum=5)
    sizes = {"num_prompts": num_prompts, "num_particles": num_particles, "num_inference_steps": num_inference_steps}
    tables = (
        (f"A square image of {side} pixels, at full size", COUNTED, counted_rows(parse_integers("crops", crops), side)),
        ("1 against 4 crops, shapes model", MEASURED, order_rows((1, 4), **sizes, seed=seed)),
    )
    for title, columns, rows in tables:
        if markdown:
            write_document(markdown_table(columns, list(rows)) + "\n")
        else:
            show_table(title, columns, list(rows))


if __name__ == "__main__":
    run_script(main)
