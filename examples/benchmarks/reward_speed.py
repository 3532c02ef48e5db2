"""Speed of a LLaVA-Reward: single calls against batches, one pass for all dimensions against one each."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Generator, Tensor

from fk_reward.benchmarks.report import Column, show_table, write_json
from fk_reward.benchmarks.timing import quartiles, seconds_of
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.devices import resolve_device
from fk_reward.output_folder import hold_folder
from fk_reward.planning.check import peak_memory
from fk_reward.rewards.llava_reward.backbones.base import BACKBONES, backbone_spec
from fk_reward.terminal import say
from fk_reward.value_checks import parse_choices, parse_integers, whole_number

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

    Single calls and the batch score the active dimension, so that neither pays for a switch.

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
    """Time the runs in turn, so that changes of the machine affect all of them. Warm up first, with `peak_memory`.

    Args:
        runs: the four runs, as `reward_runs` makes them.
        batch_size: B.
        num_repetitions: rounds; the order of the runs is reversed from round to round.
        timed: executes a run and returns its seconds.

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


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUT_OF_MEMORY = "out of memory"

_PROMPT = "a photo of a red circle left of a blue square"

COLUMNS = (
    Column("backbone"),
    Column("dtype"),
    Column("num_crops", "crops", "{:d}"),
    Column("visual_tokens", style="{:d}"),
    Column("batch_size", "B", "{:d}"),
    Column("single_rate", "images/s, single", "{:.2f}"),
    Column("batch_rate", "images/s, batch", "{:.2f}"),
    Column("batch_ratio", "batch / B singles", "{:.3f} [{:.3f}, {:.3f}]", ("batch_ratio_low", "batch_ratio_high")),
    Column("joint_ratio", "3 dims / 3 passes", "{:.3f} [{:.3f}, {:.3f}]", ("joint_ratio_low", "joint_ratio_high")),
    Column("batch_peak_gb", "peak GB, batch", "{:.2f}"),
    Column("joint_peak_gb", "peak GB, 3 dims", "{:.2f}"),
    Column("note"),
)


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """What to measure.

    Attributes:
        backbones: names among `BACKBONES`.
        dtypes: names among `DTYPES`.
        num_crops: budgets of Phi-3.5-vision's HD transform; the other backbones are measured once.
        batch_sizes: values of B.
        image_size: side of the square images in pixels.
        full_size: the sizes of the hub's checkpoints instead of tiny ones.
        num_repetitions: rounds, at least 2.
        device: "cpu", "cuda" or "cuda:1".
        seed: of weights and images.
    """

    backbones: tuple[str, ...]
    dtypes: tuple[str, ...]
    num_crops: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    image_size: int
    full_size: bool
    num_repetitions: int
    device: str
    seed: int

    @property
    def weights(self) -> list[tuple[str, str]]:
        """Backbone and dtype of each model."""
        return list(product(self.backbones, self.dtypes))


def check_memory(settings: SpeedSettings) -> Iterator[str]:
    """Describe the size of each model's weights, before any of them is made.

    Yields:
        A sentence for each backbone and dtype.

    Raises:
        ValueError: the weights alone are more than the device has free.
    """
    from fk_reward.planning.full_size_rewards import weight_sizes  # noqa: PLC0415 (slow to import)

    free = free_memory(torch.device(settings.device))
    for backbone, dtype in settings.weights:
        count, size = weight_sizes(backbone, full_size=settings.full_size, dtype=DTYPES[dtype])
        facts = f"{backbone} with 3 dimensions in {dtype}: {count / 1e6:,.1f} million parameters, {size / 1e9:.3f} GB"
        if free is not None and size > free:
            raise ValueError(
                f"{facts} of weights alone, but {settings.device} has {free / 1e9:.3f} GB free. Take another device, "
                "a narrower --dtype, another --backbone, or leave out --full-size."
            )
        yield f"{facts} of weights; activations come on top."


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None if accelerate does not know.

    Example:
        >>> free_memory(torch.device("cpu")) > 0
        True
    """
    from accelerate.utils import get_max_memory  # noqa: PLC0415 (slow to import)

    key = (device.index or 0) if device.type == "cuda" else device.type
    return get_max_memory().get(key)


def _has_crops(backbone: str) -> bool:
    return "num_crops" in backbone_spec(backbone).backbone.default_options()


def run_benchmark(settings: SpeedSettings) -> Iterator[dict[str, Any]]:
    """Make one model after the other and measure it.

    Yields:
        A row for each backbone, dtype, number of crops and batch size. Besides the columns of the table it has the
        quartiles of the rates and the `repetitions` in seconds; only a `note` for a batch that does not fit.
    """
    from fk_reward.planning.full_size_rewards import random_reward  # noqa: PLC0415 (slow to import)

    for backbone, dtype in settings.weights:
        for num_crops in settings.num_crops if _has_crops(backbone) else (None,):
            reward = random_reward(
                backbone,
                full_size=settings.full_size,
                dtype=DTYPES[dtype],
                device=settings.device,
                num_crops=num_crops,
                seed=settings.seed,
            )
            for batch_size in settings.batch_sizes:
                setting = {"backbone": backbone, "dtype": dtype, "num_crops": num_crops, "batch_size": batch_size}
                yield setting | _measure_batch(reward, batch_size, settings)
            del reward
            _release_memory()


def _measure_batch(reward: LlavaReward, batch_size: int, settings: SpeedSettings) -> dict[str, Any]:
    device = torch.device(settings.device)
    images = random_images(batch_size, settings.image_size, seed=settings.seed).to(device)
    runs = reward_runs(reward, images, [_PROMPT] * batch_size)
    row = {"visual_tokens": reward.model.backbone.prepare([images[0]], [_PROMPT]).num_visual_tokens[0]}
    try:
        peaks = {name: peak_memory(run, device) for name, run in runs.items()}
        repetitions = measure(runs, batch_size=batch_size, num_repetitions=settings.num_repetitions, timed=seconds_of)
    except torch.OutOfMemoryError:
        return row | {"note": OUT_OF_MEMORY}
    gigabytes = {f"{name}_peak_gb": None if peak is None else peak / 1e9 for name, peak in peaks.items()}
    return row | summarize(repetitions) | gigabytes | {"repetitions": [asdict(each) for each in repetitions]}


def random_images(count: int, size: int, *, seed: int) -> torch.Tensor:
    """Draw noise, (count, 3, size, size) in [0, 1]; the first images do not depend on how many there are.

    Example:
        >>> torch.equal(random_images(1, 8, seed=0), random_images(4, 8, seed=0)[:1])
        True
    """
    generator = Generator().manual_seed(seed)
    return torch.stack([torch.rand(3, size, size, generator=generator) for _ in range(count)])


def _release_memory() -> None:
    gc.collect()  # PEFT's modules know their parents, so that a model outlives its last name
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        **{package: version(package) for package in ("torch", "transformers", "peft")},
    }


def show_rows(settings: SpeedSettings, environment: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, without empty columns."""
    columns = [column for column in COLUMNS if any(row.get(column.key) is not None for row in rows)]
    size = "full size" if settings.full_size else "tiny: mostly fixed costs, not the real backbones' speed"
    title = f"{size}, random weights, images of {settings.image_size} pixels, {settings.num_repetitions} rounds"
    show_table(f"{title}, {environment['device_name']}", columns, rows)


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    backbone: str = "phi3_v",
    num_crops: str = "4,16",
    batch_size: str = "8",
    dtype: str = "float32",
    image_size: int = 512,
    num_repetitions: int = 7,
    full_size: bool = False,
    device: str = "cpu",
    seed: int = 0,
    out: OutOption = Path("results/reward-speed"),
) -> None:
    """Time LLaVA-Reward on random weights: batches and three dimensions in one pass; write `reward_speed.json`.

    Args:
        backbone: Names of backbones, separated by commas.
        num_crops: Numbers of crops (phi3_v), separated by commas.
        batch_size: Batch sizes, separated by commas.
        dtype: Floating types, separated by commas: float32, bfloat16 or float16.
        image_size: Side of the square images in pixels.
        num_repetitions: Rounds, at least 2.
        full_size: The hub's sizes; no weights are needed.
        device: Device: auto, cpu or cuda.
        seed: Seed of weights and images.
        out: Folder of the results.
    """
    whole_number("--image-size", image_size, minimum=1)
    whole_number("--num-repetitions", num_repetitions, minimum=2)
    settings = SpeedSettings(
        backbones=parse_choices("backbone", backbone, BACKBONES),
        dtypes=parse_choices("dtype", dtype, tuple(DTYPES)),
        num_crops=parse_integers("num_crops", num_crops),
        batch_sizes=parse_integers("batch_size", batch_size),
        image_size=image_size,
        full_size=full_size,
        num_repetitions=num_repetitions,
        device=resolve_device(device),
        seed=seed,
    )
    with hold_folder(out):
        _report(settings, out)


def _report(settings: SpeedSettings, out: Path) -> None:
    for sentence in check_memory(settings):
        say(sentence)
    environment = _environment(torch.device(settings.device))
    rows = list(run_benchmark(settings))
    show_rows(settings, environment, rows)
    content = {"settings": asdict(settings), "environment": environment, "rows": rows}
    say(f"Results: {write_json(out / 'reward_speed.json', content)}")


if __name__ == "__main__":
    run_script(main)
