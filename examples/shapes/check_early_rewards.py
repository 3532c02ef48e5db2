"""Prints how early a reward knows: its scores of predicted pictures against the finished ones, by scoring step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from drawn_pictures import STEPS
from safetensors.torch import load_file
from torch import Tensor

from fk_reward.benchmarks.report import Column, show_table
from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import Reward, load_reward
from fk_reward.shapes import all_prompts

COLUMNS = (
    Column("name", "scored"),
    Column("with_own", "correlation with its final score", "{:.2f}"),
    Column("with_verifier", "with the verifier", "{:.2f}"),
    Column("spread", "spread within a prompt", "{:.3f}"),
    Column("pairwise", "pairs foreseen [95 %]", "{:.3f} [{:.3f}, {:.3f}]", ("low", "high")),
)


def within_prompt_correlation(first: Tensor, second: Tensor) -> float:
    """Correlation of two (P, K) tables after the mean of each row is removed; not a number where one has no spread."""
    first, second = (table - table.mean(dim=1, keepdim=True) for table in (first.double(), second.double()))
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def foreseen(scores: Tensor, correct: Tensor) -> float:
    """Of the pairs of a right and a wrong picture, the share in which the right one scores higher; ties count half."""
    difference = scores[correct][:, None] - scores[~correct]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


def read_draws(paths: list[Path], per_prompt: int) -> dict[str, Tensor]:
    """The files of `sample_pictures.py`, by draw: images (D, K, S, 3, 64, 64) uint8, prompts (D,), correct (D, K)."""
    files = [load_file(path) for path in paths]
    tensors = {
        name: torch.cat([file[name] for file in files]).unflatten(0, (-1, per_prompt))
        for name in ("images", "prompts", "correct")
    }
    if (tensors["prompts"] != tensors["prompts"][:, :1]).any():
        raise ValueError(f"Pictures of different prompts stand among {per_prompt}: --per-prompt is another number.")
    return tensors | {"prompts": tensors["prompts"][:, 0]}


@torch.no_grad()
def score_draws(reward: Reward, draws: dict[str, Tensor]) -> Tensor:
    """Scores (S, D, K): the K pictures of one draw and one step share a call."""
    texts = [all_prompts()[index].text for index in draws["prompts"].tolist()]
    rows = [
        torch.stack([reward(images[:, step] / 255, text) for step in range(images.shape[1])])
        for images, text in zip(draws["images"], texts, strict=True)
    ]
    return torch.stack(rows, dim=1)


def rows_by_step(scores: Tensor, draws: dict[str, Tensor], names: list[str], *, seed: int) -> list[dict[str, object]]:
    """One row for each scoring step; the interval is by bootstrap over distinct prompts."""
    correct, prompts = draws["correct"], draws["prompts"].tolist()
    mixed = [i for i, verdicts in enumerate(correct) if 0 < verdicts.sum() < len(verdicts)]
    rows = []
    for name, table in zip(names, scores, strict=True):
        pairs = [foreseen(table[i], correct[i]) for i in mixed]
        interval = clustered_bootstrap(pairs, [prompts[i] for i in mixed], seed=seed)
        rows.append(
            {
                "name": name,
                "with_own": within_prompt_correlation(table, scores[-1]),
                "with_verifier": within_prompt_correlation(table, correct),
                "spread": float(table.std(dim=1).mean()),
                "pairwise": interval.estimate,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return rows


def main(
    reward: Annotated[str, typer.Option(help="A reward's name, or a composition.")] = DEFAULT_EMBEDDED_REWARD,
    samples: Annotated[list[Path], typer.Option(help="Of sample_pictures.py; may be repeated.")] = [  # noqa: B006
        Path("runs/samples/heldout.safetensors")
    ],
    num_draws: Annotated[int, typer.Option(help="How many draws to score, chosen by the seed; 0: all.")] = 0,
    per_prompt: Annotated[int, typer.Option(help="Pictures a draw in the files.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice and of the bootstrap.")] = 0,
) -> None:
    """Scores every picture and what it was predicted to become, and compares within draws of one prompt."""
    start = time.perf_counter()
    draws = read_draws(samples, per_prompt)
    order = torch.randperm(len(draws["prompts"]), generator=torch.Generator().manual_seed(seed))
    chosen = order[: num_draws or None].sort().values
    draws = {name: tensor[chosen] for name, tensor in draws.items()}
    scores = score_draws(load_reward(reward), draws)
    names = [f"step {step}" for step in STEPS] + ["finished"]
    rows = rows_by_step(scores, draws, names, seed=seed)
    mixed = (draws["correct"].any(1) & ~draws["correct"].all(1)).sum()
    title = f"{reward}: {len(chosen)} draws of {per_prompt} pictures, {mixed} with right and wrong ones; seed {seed}"
    show_table(title, COLUMNS, rows)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
