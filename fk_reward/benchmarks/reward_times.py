"""How long does each reward take, and how much memory at its peak?"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fk_reward.benchmarks.full_size_rewards import FULL_SIZE
from fk_reward.benchmarks.quartiles import quartiles
from fk_reward.benchmarks.report import Column
from fk_reward.benchmarks.speed_measure import peak_memory, timed_on
from fk_reward.rewards import Reward, load_reward, reward_card
from fk_reward.rewards.vlm_judge import VLMJudge
from fk_reward.shapes import Scene, SceneObject, render

PROMPT = "a photo of a red circle and a blue square"
"""What the image shows."""

TIME_COLUMNS = (
    Column("reward", style="`{}`"),
    Column("weights"),
    Column("image_size", "pixels", "{:d}"),
    Column("batch_size", "B", "{:d}"),
    Column("milliseconds", "ms an image", "{:.3g} [{:.3g}, {:.3g}]", ("milliseconds_low", "milliseconds_high")),
    Column("peak_gb", "peak GB", "{:.2f}"),
    Column("note"),
)

_AT_HAND = ("in the package", "none")  # `weights` on the cards of rewards that need no download
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
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    full_size: bool = False
    num_repetitions: int = 7
    device: str = "cpu"
    seed: int = 0


def is_at_hand(name: str) -> bool:
    """Whether a reward can be loaded without a download and without a choice.

    Example:
        >>> is_at_hand("shapes-clipscore"), is_at_hand("clipscore")
        (True, False)
    """
    return reward_card(name).weights in _AT_HAND


def image_size(name: str = "") -> int:
    """Side of the square image that a reward gets, in pixels; the shapes world has an own one.

    Example:
        >>> image_size("shapes-clipscore"), image_size("clipscore")
        (64, 512)
    """
    return _SHAPES_SIZE if name.startswith("shapes-") else _IMAGE_SIZE


def sample_images(count: int, size: int) -> Tensor:
    """What `PROMPT` says, (count, 3, size, size) in [0, 1].

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
    """Time those of the rewards that can be made here, one after the other; each is gone before the next is made.

    Args:
        names: registered names.
        settings: how.

    Yields:
        A row for each reward and batch size: median and quartiles of the milliseconds an image, and on CUDA the most
        that PyTorch's allocator held. A batch for which memory did not suffice has a `note` in their place.
    """
    for name in names:
        reward, weights = _make(name, settings)
        if reward is None:
            continue
        for batch_size in settings.batch_sizes:
            size = image_size(name)
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
    return (None, "") if isinstance(reward, VLMJudge) else (reward, "random")  # nobody knows how long it would answer


def _time(reward: Reward, images: Tensor, settings: TimeSettings) -> dict[str, Any]:
    device = torch.device(settings.device)
    images = images.to(device)

    @torch.inference_mode()
    def run() -> None:
        reward(images, PROMPT)

    try:
        run()  # warms up
        peak = peak_memory(run, device)
        seconds = [timed_on(device)(run) for _ in range(settings.num_repetitions)]
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    row: dict[str, Any] = quartiles("milliseconds", [1e3 * value / len(images) for value in seconds])
    return row | {"peak_gb": None if peak is None else peak / 1e9, "note": ""}
