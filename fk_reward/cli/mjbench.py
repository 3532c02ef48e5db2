"""`fk-reward mjbench`: how often a reward prefers the image that people prefer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT, REWARD, DeviceOption, RayWorkersOption, ShardOption, TypedFields, named_path
from fk_reward.value_checks import parse_shard, real_number

if TYPE_CHECKING:
    RequestOptions = dict[str, Any]
else:
    RequestOptions = Annotated[
        Any, TypedFields("fk_reward.benchmarks.mjbench.runs:MJBenchRequest", skip=("reward", "out"))
    ]


def mjbench(  # noqa: PLR0913 (one parameter for each option)
    *,
    reward: Annotated[str | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    request: RequestOptions,
    tie_threshold: float | None = None,
    sweep: str | None = None,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    ray_workers: RayWorkersOption = None,
    report: Annotated[bool, Parameter(group=OUTPUT)] = False,
    out: Annotated[Path | None, Parameter(alias="-o", converter=named_path, group=OUTPUT)] = None,
) -> None:
    """Measure a reward on MJ-Bench: accuracy with and without ties, by subset, beside published results.

    The reward sees captions and images, no template of a judge. Results are written after each batch; what is there
    is not scored again. Several GPUs: accelerate launch --multi_gpu -m fk_reward.cli mjbench --reward ...

    Args:
        reward: Reward of `fk-reward rewards`, or a composition of them.
        request: What is asked.
        tie_threshold: Scores that differ by no more tie; 0 if not given, for bias 0.1 of the scores' range.
        sweep: Tie thresholds to try, separated by commas; those of 10 to 50 % of ties if not given.
        device: Device of the reward: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
        shard: i/n: this process takes every n-th question; as accelerate launched it if not given.
        ray_workers: So many Ray actors score, each with a GPU unless the device is the CPU; this process if not given.
        report: Only report what is in the folder.
        out: Folder of the results; an unfinished one is resumed. results/mjbench/... if not given.
    """
    from fk_reward.benchmarks.mjbench.report import write_report
    from fk_reward.benchmarks.mjbench.runs import MJBenchRequest, run_request
    from fk_reward.benchmarks.report import show_report
    from fk_reward.benchmarks.store import ResultStore
    from fk_reward.devices import resolve_device

    if tie_threshold is not None:
        real_number("--tie-threshold", tie_threshold, low=0)
    asked = MJBenchRequest(reward=reward, **request, out=out)
    options: dict[str, Any] = {"tie_threshold": tie_threshold, "thresholds": parse_thresholds(sweep)}
    if report:
        show_report(write_report(ResultStore(asked.folder), **options), "Results")
        return
    part = None if shard is None else parse_shard(shard)
    found = run_request(asked, device=resolve_device(device), shard=part, ray_workers=ray_workers, **options)
    if found is not None:
        show_report(found, "Results")


def parse_thresholds(text: str | None) -> tuple[float, ...] | None:
    """Tie thresholds as typed: `"0,0.01"`; None stays None.

    Raises:
        ValueError: for anything but numbers that are at least 0.

    Example:
        >>> parse_thresholds("0, 0.01")
        (0.0, 0.01)
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--sweep should be numbers separated by commas, got {text!r}.") from error
    if not all(0 <= value < float("inf") for value in values):
        raise ValueError(f"--sweep should be numbers of at least 0, got {text!r}.")
    return values
