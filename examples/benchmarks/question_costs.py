"""What it costs to judge the benchmarks of questions: operations of the judge, counted without its weights.

The judge is Qwen3-VL-8B, made on the meta device from the sizes in its `config.json`. Minutes are operations over the
rate of `--rate`, an assumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fk_reward.benchmarks.report import Column, markdown_table, show_table, write_json
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.output_folder import hold_folder
from fk_reward.planning.full_size_rewards import qwen3_vl_8b
from fk_reward.planning.meta_device import count_flops
from fk_reward.planning.prices import PRICES
from fk_reward.rewards import VQAScore
from fk_reward.terminal import write_document

TERA = 1e12
PROMPT = "a photo of a red dog to the left of two blue bowls"


class Benchmark(NamedTuple):
    """A suite with the settings of its paper.

    Attributes:
        suite: of `--suite`.
        num_images: prompts times images of a prompt.
        num_questions: of all images; where papers state a mean or a range, rounded.
    """

    suite: str
    num_images: int
    num_questions: int


BENCHMARKS = (
    Benchmark("geneval2", 800, 6_000),
    Benchmark("dpg-bench", 1_065 * 4, 1_065 * 4 * 14),
    Benchmark("genai-bench", 1_600, 1_600),
    Benchmark("unigenbench", 600 * 4, 600 * 4 * 5),
    Benchmark("t2i-compbench", 300 * 10 * 8, 300 * 10 * (3 * 2 + 5)),  # two noun phrases in three of the categories
)

COLUMNS = (
    *(Column("suite"), Column("num_images", "images", "{:,d}"), Column("num_questions", "questions", "{:,d}")),
    *(Column("judging", "judging, 10¹⁵ operations", "{:,.0f}"), Column("minutes", "judging, minutes", "{:.0f}")),
    Column("drawing", "drawing best of 4, SDXL, minutes", "{:,.0f}"),
)


def question_operations(side: int) -> int:
    """Operations of the judge for one question about a square image.

    Args:
        side: of the image in pixels.
    """
    with torch.device("meta"):
        model = qwen3_vl_8b()
    return count_flops(VQAScore(model), side, PROMPT)


def rows(operations: float, *, rate: float, num_steps: int = 50) -> list[dict[str, Any]]:
    """A row for each benchmark.

    Args:
        operations: of a question.
        rate: operations a second.
        num_steps: of an image.

    Example:
        >>> found = rows(20e12, rate=4e14)[0]
        >>> found["suite"], found["judging"], found["minutes"]
        ('geneval2', 120.0, 5.0)
    """
    prices = PRICES["sdxl"]
    image = 4 * (num_steps * prices.sample_step + prices.decode) * TERA
    return [
        {
            **one._asdict(),
            "judging": one.num_questions * operations / 1e15,
            "minutes": one.num_questions * operations / rate / 60,
            "drawing": one.num_images * image / rate / 60,
        }
        for one in BENCHMARKS
    ]


def report(found: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    return markdown_table(COLUMNS, found)


def main(
    *,
    side: int = 1024,
    rate: float = 400.0,
    markdown: bool = False,
    out: OutOption = Path("results/question-costs"),
) -> None:
    """Count what judging each benchmark of questions costs, and write `question_costs.json`.

    Args:
        side: Of the images in pixels.
        rate: 10¹² operations a second; 400 is 40 % of what an H100 can do in bfloat16.
        markdown: Print Markdown and nothing else.
        out: Folder of the results.
    """
    with hold_folder(out):
        operations = question_operations(side)
        found = rows(operations, rate=rate * TERA)
        settings = {"side": side, "rate": rate * TERA, "question": operations}
        write_json(out / "question_costs.json", {"settings": settings, "rows": found})
    if markdown:
        write_document(report(found))
        return
    show_table(f"Judged by Qwen3-VL-8B, {operations / TERA:.1f} · 10¹² operations a question", COLUMNS, found)


if __name__ == "__main__":
    run_script(main)
