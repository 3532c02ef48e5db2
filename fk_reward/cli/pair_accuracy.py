"""`fk-reward pair-accuracy`: how often rewards prefer the image that people prefer, on public benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fk_reward.cli.options import MEMORY, OUTPUT, REWARD, DeviceOption, OutOption, RayWorkersOption, ShardOption
from fk_reward.value_checks import parse_shard


def pair_accuracy(  # noqa: PLR0913 (one parameter for each option)
    *,
    data: list[str] | None = None,
    reward: Annotated[list[str] | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    adapter: Annotated[list[Path] | None, Parameter(group=REWARD)] = None,
    batch_size: Annotated[int, Parameter(group=MEMORY)] = 8,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    ray_workers: RayWorkersOption = None,
    report: Annotated[bool, Parameter(group=OUTPUT)] = False,
    out: OutOption = Path("results/pair-accuracy"),
) -> None:
    """Measure rewards on human preferences in public formats: one table, reward against benchmark.

    The data are your copies. Results are written after each batch; what is there is not scored again. Several GPUs:
    accelerate launch --multi_gpu -m fk_reward.cli pair-accuracy ...

    Args:
        data: Benchmark as NAME=PATH: hpdv2, hpdv3, imagereward, pickapic, genai-bench, mmrb2, or shapes without a path;
            may be repeated.
        reward: Reward of `fk-reward rewards`, or a composition of them; may be repeated. The embedded one if not given.
        adapter: Folder of a LLaVA-Reward of one's own; may be repeated.
        batch_size: Prompts at a time, each with all of its images.
        device: Device of the rewards: auto (the GPU where there is one), cpu or cuda.
        shard: i/n: this process takes every n-th prompt; as accelerate launched it if not given.
        ray_workers: So many Ray actors score, each with a GPU unless the device is the CPU; this process if not given.
        report: Only report what is in the folder.
        out: Folder of the results; an unfinished one is resumed.
    """
    from fk_reward.benchmarks.rankings.runs import RankingRequest, parse_data, run_request, write_report
    from fk_reward.benchmarks.report import show_report
    from fk_reward.devices import resolve_device

    if report:
        show_report(write_report(out), "Results")
        return
    asked = RankingRequest(
        data=parse_data(data or ()),
        reward=tuple(dict.fromkeys(reward or ())),
        adapter=tuple(dict.fromkeys(adapter or ())),
        batch_size=batch_size,
        out=out,
    )
    part = None if shard is None else parse_shard(shard)
    found = run_request(asked, device=resolve_device(device), shard=part, ray_workers=ray_workers)
    if found is not None:
        show_report(found, "Results")
