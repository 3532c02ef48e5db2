"""Timing a reward: single calls against a batch, dimensions one by one against all in one pass; peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fk_reward.benchmarks.quartiles import quartiles

if TYPE_CHECKING:
    from fk_reward.rewards.llava_reward.llava_reward import LlavaReward

Run: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Wall-clock seconds of one round of four runs, all on the same `batch_size` images.

    Attributes:
        batch_size: B.
        singles: B calls of one image, one dimension.
        batch: one call of B images, one dimension.
        passes: one call of B images for each dimension, switching to it included.
        joint: one call of B images that scores all dimensions in one pass.
    """

    batch_size: int
    singles: float
    batch: float
    passes: float
    joint: float

    @property
    def single_rate(self) -> float:
        """Images a second when each image is a call."""
        return self.batch_size / self.singles

    @property
    def batch_rate(self) -> float:
        """Images a second when all images are one call."""
        return self.batch_size / self.batch

    @property
    def batch_ratio(self) -> float:
        """One call of B images over B calls of one image; below 1 batching saves time."""
        return self.batch / self.singles

    @property
    def joint_ratio(self) -> float:
        """One pass for all dimensions over one pass for each; below 1 sharing the pass saves time."""
        return self.joint / self.passes


RUNS = tuple(field.name for field in fields(Repetition) if field.name != "batch_size")
QUANTITIES = ("single_rate", "batch_rate", "batch_ratio", "joint_ratio")


def reward_runs(reward: LlavaReward, images: Tensor, prompts: list[str]) -> dict[str, Run]:
    """The four runs, by their names in `Repetition`.

    Single calls and the batch score the dimension that is active, so that none of them pays for a switch.

    Args:
        reward: with several dimensions.
        images: (B, 3, H, W) float32 in [0, 1], on the reward's device.
        prompts: B strings.
    """

    def singles() -> None:
        for image, prompt in zip(images.split(1), prompts, strict=True):
            reward(image, [prompt])

    def passes() -> None:
        for dimension in reward.dimensions:
            reward.set_dimension(dimension)(images, prompts)

    return {
        "singles": singles,
        "batch": lambda: reward(images, prompts),
        "passes": passes,
        "joint": lambda: reward.score_dimensions(images, prompts),
    }


def measure(
    runs: Mapping[str, Run], *, batch_size: int, num_repetitions: int, timed: Callable[[Run], float]
) -> list[Repetition]:
    """Time the runs by turns, so that what changes on the machine meets all of them. Warm up first, with `peak_memory`.

    Args:
        runs: the four runs, as `reward_runs` makes them.
        batch_size: B.
        num_repetitions: rounds; the order of the runs is reversed from round to round.
        timed: executes a run and says how long it took.

    Example:
        >>> costs = {"singles": 8.0, "batch": 2.0, "passes": 6.0, "joint": 5.0}
        >>> runs = {name: lambda cost=cost: cost for name, cost in costs.items()}
        >>> measure(runs, batch_size=8, num_repetitions=1, timed=lambda run: run())[0].batch_ratio
        0.25
    """
    repetitions = []
    for index in range(num_repetitions):
        order = RUNS if index % 2 == 0 else RUNS[::-1]
        seconds = {name: timed(runs[name]) for name in order}
        repetitions.append(Repetition(batch_size=batch_size, **seconds))
    return repetitions


def timed_on(device: torch.device) -> Callable[[Run], float]:
    """A stopwatch in seconds that waits for the device before and after a run.

    Example:
        >>> timed_on(torch.device("cpu"))(lambda: None) < 1.0
        True
    """

    def timed(run: Run) -> float:
        _wait_for(device)
        started = time.perf_counter()
        run()
        _wait_for(device)
        return time.perf_counter() - started

    return timed


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Execute a run; the most bytes that PyTorch's allocator held in it, the weights included.

    Returns:
        None on anything but CUDA, where nothing counts them.

    Example:
        >>> peak_memory(lambda: None, torch.device("cpu")) is None
        True
    """
    if device.type != "cuda":
        run()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    _wait_for(device)
    return torch.cuda.max_memory_allocated(device)


def summarize(repetitions: Sequence[Repetition]) -> dict[str, float]:
    """Median and quartiles of each quantity: `batch_ratio`, `batch_ratio_low`, `batch_ratio_high`, ...

    Args:
        repetitions: at least two.

    Example:
        >>> row = summarize([Repetition(batch_size=8, singles=4.0, batch=1.0, passes=3.0, joint=1.5)] * 2)
        >>> row["single_rate"], row["batch_rate"], row["batch_ratio"], row["joint_ratio"]
        (2.0, 8.0, 0.25, 0.5)
    """
    row: dict[str, float] = {}
    for name in QUANTITIES:
        row |= quartiles(name, [getattr(repetition, name) for repetition in repetitions])
    return row


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
