"""What it costs to judge the public benchmarks: operations of the judge or reward, counted without its weights.

The judge of questions is Qwen3-VL-8B, made on the meta device from the sizes in its `config.json`; GenEval's is
Mask2Former, and for each coloured object CLIP; rewards of preferences have the prices of `fk-reward prices`. Minutes
are operations over the rate of `--rate`, an assumption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

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


class Pairs(NamedTuple):
    """A benchmark of preferences.

    Attributes:
        name: of the command, or of `--data`.
        num_images: that a reward scores.
    """

    name: str
    num_images: int


PREFERENCES = (
    Pairs("mjbench", 2 * (729 + 672 + 1_120) + 1_548),  # pairs of three perspectives, and images of bias
    Pairs("hpdv2", 400 * 9),
    Pairs("imagereward", 2_700),
    Pairs("pickapic", 500 * 2),
    Pairs("genai-bench", 1_600 * 6),
    Pairs("mmrb2", 1_000 * 2),
)
REWARDS = ("hpsv2.1", "llava-reward-alignment")

GENEVAL_IMAGES = 553 * 4
GENEVAL_CROPS = GENEVAL_IMAGES  # at most: two of six tasks ask for colours, of one or two objects

COLUMNS = (
    *(Column("suite"), Column("num_images", "images", "{:,d}"), Column("num_questions", "questions", "{:,d}")),
    *(Column("judging", "judging, 10¹⁵ operations", "{:,.0f}"), Column("minutes", "judging, minutes", "{:.0f}")),
    Column("drawing", "drawing best of 4, SDXL, minutes", "{:,.0f}"),
)
OF_PREFERENCES = (
    *(Column("name", "benchmark"), Column("num_images", "images", "{:,d}")),
    *(Column(reward, f"{reward}, minutes", "{:,.2f}") for reward in REWARDS),
)


def question_operations(side: int) -> int:
    """Operations of the judge for one question about a square image.

    Args:
        side: of the image in pixels.
    """
    with torch.device("meta"):
        model = qwen3_vl_8b()
    return count_flops(VQAScore(model), side, PROMPT)


def detector_operations() -> int:
    """Operations of GenEval's Mask2Former (Swin-S) for one square image, which it reads at 800 x 800."""
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    sizes = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    config = Mask2FormerConfig(backbone_config=SwinConfig(**sizes, **stages), num_queries=100, num_labels=80)
    # Fake tensors, not those of the meta device: the model makes some of its tensors on the CPU.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = Mask2FormerForUniversalSegmentation(config).eval()
        model(pixel_values=torch.zeros(1, 3, 800, 800), pixel_mask=torch.ones(1, 800, 800))
    return counter.get_total_flops()


def preference_rows(*, rate: float) -> list[dict[str, Any]]:
    """A row for each benchmark of preferences, with the minutes of each reward.

    Example:
        >>> found = preference_rows(rate=4e14)[1]
        >>> found["name"], found["num_images"], round(found["llava-reward-alignment"], 1)
        ('hpdv2', 3600, 4.3)
    """
    prices = PRICES["sdxl"]
    return [
        one._asdict() | {name: one.num_images * prices.reward_price(name) * TERA / rate / 60 for name in REWARDS}
        for one in PREFERENCES
    ]


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


def main(
    *,
    side: int = 1024,
    rate: float = 400.0,
    markdown: bool = False,
    out: OutOption = Path("results/question-costs"),
) -> None:
    """Count what judging each public benchmark costs, and write `question_costs.json`.

    Args:
        side: Of the images in pixels.
        rate: 10¹² operations a second; 400 is 40 % of what an H100 can do in bfloat16.
        markdown: Print Markdown and nothing else.
        out: Folder of the results.
    """
    with hold_folder(out):
        operations, detector = question_operations(side), detector_operations()
        found, pairs = rows(operations, rate=rate * TERA), preference_rows(rate=rate * TERA)
        colors = GENEVAL_CROPS * PRICES["sdxl"].reward_price("clipscore") * TERA
        settings = {"side": side, "rate": rate * TERA, "question": operations, "detector": detector}
        settings["geneval_minutes"] = (GENEVAL_IMAGES * detector + colors) / (rate * TERA) / 60
        write_json(out / "question_costs.json", {"settings": settings, "rows": found, "preferences": pairs})
    if markdown:
        write_document(f"{markdown_table(COLUMNS, found)}\n{markdown_table(OF_PREFERENCES, pairs)}")
        return
    show_table(f"Judged by Qwen3-VL-8B, {operations / TERA:.1f} · 10¹² operations a question", COLUMNS, found)
    show_table("Preferences, scored by", OF_PREFERENCES, pairs)


if __name__ == "__main__":
    run_script(main)
