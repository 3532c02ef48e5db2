"""`fk-reward mjbench`: how often a reward prefers the image that people prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fk_reward.output_folder import NAMED_PATH
from fk_reward.value_checks import parse_shard


def mjbench(  # noqa: PLR0913 (options of a command)
    *,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", "-r", help="A reward of `fk-reward rewards`, or a composition of them.", show_default=False
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="In place of --reward: folder of a LLaVA-Reward of one's own.", show_default=False),
    ] = None,
    perspective: Annotated[str, typer.Option(help="alignment, safety, quality or bias.")] = "alignment",
    suite: Annotated[str, typer.Option(help="official, or shapes: rendered images, without a network.")] = "official",
    data: Annotated[
        str, typer.Option(help="Of the official suite: dataset of the hub, or file or folder in its schema.")
    ] = "MJ-Bench/MJ-Bench",
    revision: Annotated[
        str | None, typer.Option(help="Of a dataset of the hub.", show_default="that of the paper's four perspectives")
    ] = None,
    num_pairs: Annotated[int, typer.Option(help="Of the suite shapes: number of questions.", min=1)] = 210,
    seed: Annotated[int, typer.Option(help="Of the suite shapes.", min=0)] = 0,
    tie_threshold: Annotated[
        float | None,
        typer.Option(
            help="Scores that differ by no more tie.", show_default="0; for bias 0.1 of the scores' range", min=0
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Tie thresholds to try, separated by commas.", show_default="10 to 50 % of ties")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions a call of the reward.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: this process takes every n-th question.", show_default="as accelerate launched it"),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Only report what is in the folder.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; an unfinished one is resumed.",
            show_default="results/mjbench/...",
            **NAMED_PATH,
        ),
    ] = None,
) -> None:
    """Measure a reward on MJ-Bench: accuracy with and without ties, by subset, beside published results.

    The reward sees captions and images, no template of a judge. Results are written after each batch; what is there
    is not scored again. Several GPUs: accelerate launch --multi_gpu -m fk_reward.cli mjbench --reward ...
    """
    from fk_reward.benchmarks.mjbench.report import write_report
    from fk_reward.benchmarks.mjbench.runs import MJBenchRequest, run_request
    from fk_reward.benchmarks.report import show_report
    from fk_reward.benchmarks.store import ResultStore
    from fk_reward.devices import resolve_device

    request = MJBenchRequest(
        reward=reward,
        adapter=adapter,
        perspective=perspective,
        suite=suite,
        data=data,
        revision=revision,
        num_pairs=num_pairs,
        seed=seed,
        batch_size=batch_size,
        out=out,
    )
    options: dict[str, Any] = {"tie_threshold": tie_threshold, "thresholds": parse_thresholds(sweep)}
    if report:
        show_report(write_report(ResultStore(request.folder), **options), "Results")
        return
    part = None if shard is None else parse_shard(shard)
    found = run_request(request, device=resolve_device(device), shard=part, **options)
    if found is not None:
        show_report(found, "Results")


def parse_thresholds(text: str | None) -> tuple[float, ...] | None:
    """Tie thresholds as typed: `"0,0.01"`; None stays None.

    Raises:
        typer.BadParameter: for anything but numbers that are at least 0.

    Example:
        >>> parse_thresholds("0, 0.01")
        (0.0, 0.01)
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"sweep should be numbers separated by commas, got {text!r}.") from error
    if not all(0 <= value < float("inf") for value in values):
        raise typer.BadParameter(f"sweep should be numbers of at least 0, got {text!r}.")
    return values
