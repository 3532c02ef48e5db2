"""What the host does for a batch of images besides the model: calls of attention, and inputs of questions.

Both are compared with what transformers does by itself. Nothing of a model is computed, but images, patches, windows
and layers are those of the full size, and so are the counts. With --full-size, of each reward: operations, calls of
attention, and the host's time where its networks take none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from fk_reward.benchmarks.report import Column, markdown_table, show_table
from fk_reward.benchmarks.rewards.host_time import HOST_COLUMNS, host_row
from fk_reward.cli import run_script
from fk_reward.planning.full_size_rewards import FULL_SIZE
from fk_reward.rewards import REWARDS
from fk_reward.rewards.batched_windows import batch_windows
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.vqascore import QUESTION
from fk_reward.terminal import write_document

COLUMNS = (
    Column("work"),
    Column("before", style="{:,.5g}"),
    Column("after", style="{:,.5g}"),
    Column("known", "known prompts", "{:,.5g}"),
)

_SIZES = {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}  # of Qwen2.5-VL-7B's vision tower
_NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 16}
_ASKED = {"vqascore": "Qwen3-VL-2B", "llava-score": "LLaVA-1.5-7B"}


def attention_calls(num_images: int, side: int, *, batched: bool) -> int:
    """Calls of the attention function in one pass of Qwen2.5-VL's vision tower.

    Args:
        num_images: square images.
        side: in pixels.
        batched: whether windows of one length share a call.
    """
    config = Qwen2_5_VLConfig(vision_config=_SIZES | _NARROW).vision_config
    config._attn_implementation = "sdpa"
    tower = qwen.Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    if batched:
        batch_windows(tower)
    calls = []

    def counted(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        calls.append(module)
        return query.transpose(1, 2), None  # the count does not depend on the result

    table, rows = qwen.ALL_ATTENTION_FUNCTIONS._global_mapping, 2 * round(side / 28)
    own, table["sdpa"] = table["sdpa"], counted
    try:
        with torch.no_grad():
            tower(torch.zeros(num_images * rows**2, 1176), grid_thw=torch.tensor([[1, rows, rows]] * num_images))
    finally:
        table["sdpa"] = own
    return len(calls)


def question_work(name: str, num_images: int, side: int, *, repeats: int) -> dict[str, float]:
    """Milliseconds for the inputs of a question about each image.

    Args:
        name: a reward that asks one.
        num_images: square images, each with another prompt.
        side: in pixels.
        repeats: timed runs; the shortest counts.

    Returns:
        `before`: by transformers' processor on blank images; `after`: as the reward makes them for new prompts;
        `known`: for those of an earlier call.
    """
    model = FULL_SIZE[name].make().model  # on the meta device: only its processor is used
    texts = [model._text(QUESTION.replace("{prompt}", f"cat {index}"), None, "") for index in range(num_images)]
    nested = [[image] for image in to_pil(torch.zeros(num_images, 3, side, side))]
    by_processor = {"images": nested, "text": texts, "padding": True, "return_tensors": "pt"}
    return {
        "before": _milliseconds(lambda: model.processor(**by_processor), repeats),
        "after": _milliseconds(lambda: model._prompts._make(texts, (side, side), ()), repeats),
        "known": _milliseconds(lambda: model._prompts(texts, (side, side)), repeats),
    }


def _milliseconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    num_images: int = 8,
    side: int = 1024,
    repeats: int = 3,
    full_size: bool = False,
    reward: list[str] | None = None,
    markdown: bool = False,
) -> None:
    """Count and time the host's work for a batch of square images, before and after.

    Args:
        num_images: Images in the batch.
        side: Their height and width in pixels.
        repeats: Timed runs; the shortest counts.
        full_size: Show each reward at full size: operations, calls of attention, and the host's time without networks.
        reward: With --full-size: name of a reward; may be repeated. All by default.
        markdown: Print Markdown.
    """
    title = f"{num_images} images of {side} x {side}"
    if full_size:
        found = [host_row(name, num_images, side, repeats=repeats) for name in reward or REWARDS]
        _show(f"{title}, full size", HOST_COLUMNS, found, markdown=markdown)
        return
    before, after = (attention_calls(num_images, side, batched=batched) for batched in (False, True))
    rows: list[dict[str, Any]] = [{"work": "attention calls, Qwen2.5-VL's tower", "before": before, "after": after}]
    for name, weights in _ASKED.items():
        work = f"inputs of {name} on {weights}, ms"
        rows.append({"work": work, **question_work(name, num_images, side, repeats=repeats)})
    _show(title, COLUMNS, rows, markdown=markdown)


def _show(title: str, columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, markdown: bool) -> None:
    if markdown:
        write_document(markdown_table(columns, rows))
    else:
        show_table(title, columns, rows)


if __name__ == "__main__":
    run_script(main)
