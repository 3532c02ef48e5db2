"""Cost of rewards: parameters, memory and operations, counted without weights; seconds, measured."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fk_reward.benchmarks.report import Column
from fk_reward.benchmarks.timing import quartiles, seconds_of
from fk_reward.planning.check import peak_memory
from fk_reward.planning.full_size_rewards import FULL_SIZE, FullSize
from fk_reward.planning.meta_device import count_flops
from fk_reward.planning.planned_models import is_at_hand
from fk_reward.rewards import Reward, load_reward, reward_card
from fk_reward.rewards.vlm_judge import MarkJudge, VLMJudge
from fk_reward.shapes import Scene, SceneObject, render

PROMPT = "a photo of a red circle and a blue square"
"""Describes the image."""

TIME_COLUMNS = (
    Column("reward", style="`{}`"),
    Column("weights"),
    Column("image_size", "pixels", "{:d}"),
    Column("batch_size", "B", "{:d}"),
    Column("milliseconds", "ms an image", "{:.3g} [{:.3g}, {:.3g}]", ("milliseconds_low", "milliseconds_high")),
    Column("peak_gb", "peak GB", "{:.2f}"),
    Column("note"),
)

_IMAGE_SIZE, _SHAPES_SIZE = 512, 64


@dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """How to measure.

    Attributes:
        batch_sizes: images in a call.
        full_size: measure rewards whose weights would be downloaded, too, with random weights.
        num_repetitions: timed calls, at least 2.
        device: "cpu" or "cuda".
        seed: of random weights.
        side: of the square images in pixels; those of the shapes world keep their own.
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    full_size: bool = False
    num_repetitions: int = 7
    device: str = "cpu"
    seed: int = 0
    side: int = _IMAGE_SIZE


def image_size(name: str = "", side: int = _IMAGE_SIZE) -> int:
    """Side of the square image that a reward gets, in pixels; the shapes world has its own.

    Args:
        name: of the reward.
        side: where it is not of the shapes world.

    Example:
        >>> image_size("shapes-clipscore"), image_size("clipscore")
        (64, 512)
    """
    return _SHAPES_SIZE if name.startswith("shapes-") else side


def sample_images(count: int, size: int) -> Tensor:
    """Render what `PROMPT` describes, (count, 3, size, size) in [0, 1].

    Example:
        >>> sample_images(2, 64).shape
        torch.Size([2, 3, 64, 64])
    """
    objects = (
        SceneObject("circle", "red", x=0.3, y=0.5, size=0.2),
        SceneObject("square", "blue", x=0.7, y=0.5, size=0.2),
    )
    return functional.interpolate(render([Scene(objects)] * count), (size, size))


def time_rows(names: Sequence[str], settings: TimeSettings) -> Iterator[dict[str, Any]]:
    """Time those of the rewards that can be made here, one after the other; each is freed before the next is made.

    Args:
        names: registered names.
        settings: how.

    Yields:
        A row for each reward and batch size: median and quartiles of the milliseconds per image, and on CUDA the most
        that PyTorch's allocator held; only a `note` for weights or a batch that do not fit into memory.
    """
    for name in names:
        try:
            reward, weights = _make(name, settings)
        except torch.OutOfMemoryError:
            yield {"reward": name, "note": "the weights do not fit into memory"}
            continue
        if reward is None:
            continue
        for batch_size in settings.batch_sizes:
            size = image_size(name, settings.side)
            setting = {"reward": name, "weights": weights, "image_size": size, "batch_size": batch_size}
            yield setting | _time(reward, sample_images(batch_size, size), settings)
        del reward
        gc.collect()  # PEFT's modules know their parents, so that a model outlives its last name
        torch.cuda.empty_cache()


def _make(name: str, settings: TimeSettings) -> tuple[Reward | None, str]:
    """The reward on the device, and where its weights are from; None where it is not to be measured."""
    if is_at_hand(name):
        return load_reward(name).to(settings.device), "trained"
    if not settings.full_size or name not in FULL_SIZE:
        return None, ""
    reward = FULL_SIZE[name].make(device=settings.device, seed=settings.seed)
    # The length of a random judge's answer says nothing.
    return (None, "") if isinstance(reward, VLMJudge | MarkJudge) else (reward, "random")


def _time(reward: Reward, images: Tensor, settings: TimeSettings) -> dict[str, Any]:
    device = torch.device(settings.device)
    images = images.to(device)

    @torch.inference_mode()
    def run() -> None:
        reward(images, PROMPT)

    try:
        run()  # warms up
        peak = peak_memory(run, device)
        seconds = [seconds_of(run) for _ in range(settings.num_repetitions)]
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    row: dict[str, Any] = quartiles("milliseconds", [1e3 * value / len(images) for value in seconds])
    return row | {"peak_gb": None if peak is None else peak / 1e9, "note": ""}


COST_COLUMNS = (
    Column("reward", style="`{}`"),
    Column("parameters", "parameters, million", "{:,.1f}"),
    Column("gigabytes", "weights, GB", "{:.3g}"),
    Column("dtype"),
    Column("gflops", "GFLOP an image", "{:,.1f}"),
    Column("note"),
)


def cost_row(name: str, *, flops: bool = True) -> dict[str, Any]:
    """Count what a reward costs, without its weights.

    Args:
        name: a registered name.
        flops: whether to count operations, too, which takes seconds.

    Returns:
        `reward`, `parameters` in millions, `gigabytes` (10⁹ bytes) and `dtype` as the reward is loaded by default,
        `gflops` (10⁹ operations) of one image and prompt, and a `note`. Keys that are not counted are missing.

    Example:
        >>> cost_row("clipscore", flops=False)["parameters"]
        427.616513
        >>> cost_row("llava-reward")
        {'reward': 'llava-reward', 'note': 'not computed: that of the backbone'}
    """
    if name in FULL_SIZE:
        costs = _full_size_costs(FULL_SIZE[name], flops=flops)
    elif is_at_hand(name):
        costs = _costs(load_reward(name), image_size(name), flops=flops)
    else:
        costs = {"note": f"not computed: {reward_card(name).memory}"}
    return {"reward": name, **costs}


@cache  # several names share one entry, such as the dimensions of LLaVA-Reward
def _full_size_costs(entry: FullSize, *, flops: bool) -> dict[str, Any]:
    return _costs(entry.make(), image_size(), flops=flops)


def _costs(reward: Reward, size: int, *, flops: bool) -> dict[str, Any]:
    weights = list(dict.fromkeys(weight for module in reward._held_modules() for weight in module.parameters()))
    if not weights:
        return {"note": "no weights"}
    costs: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in weights) / 1e6,
        "gigabytes": sum(weight.nbytes for weight in weights) / 1e9,
        "dtype": str(weights[0].dtype).removeprefix("torch."),
    }
    if isinstance(reward, VLMJudge):
        return costs | {"note": "as many passes as the answer has tokens"}
    if isinstance(reward, MarkJudge):
        return costs | {"note": "one or two passes a mark"}
    return costs | ({"gflops": count_flops(reward, size, PROMPT) / 1e9} if flops else {})
