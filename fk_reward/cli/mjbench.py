"""`fk-reward mjbench`: how often a reward prefers the picture that people prefer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import NAMED_PATH
from fk_reward.value_checks import parse_shard

if TYPE_CHECKING:
    from fk_reward.benchmarks.mjbench.questions import QuestionTable
    from fk_reward.benchmarks.store import ResultStore
    from fk_reward.rewards import Reward

OFFICIAL, SHAPES = "official", "shapes"


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
    suite: Annotated[str, typer.Option(help="official, or shapes: rendered pictures, without a network.")] = OFFICIAL,
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

    The reward sees captions and pictures, no template of a judge. Results are written after each batch; what is there
    is not scored again. Several GPUs: accelerate launch --multi_gpu -m fk_reward.cli mjbench --reward ...
    """
    from fk_reward.benchmarks.mjbench.report import show_report
    from fk_reward.benchmarks.runner import find_share
    from fk_reward.benchmarks.store import ResultStore
    from fk_reward.devices import resolve_device

    folder = out or Path("results") / "mjbench" / f"{suite}-{perspective}"
    options: dict[str, Any] = {"tie_threshold": tie_threshold, "thresholds": parse_thresholds(sweep)}
    if report:
        show_report(ResultStore(folder), **options)
        return
    place = resolve_device(device)
    share = find_share(None if shard is None else parse_shard(shard), place)
    with share.hold(folder):
        questions, source = _questions(suite, perspective, data=data, revision=revision, num_pairs=num_pairs, seed=seed)
        name, judge = _load_reward(reward, adapter, suite=suite, device=place)
        store = _open_store(folder, judge, name, questions, source={"suite": suite, **source})
        _run(judge, questions, store, shard=share.shard, batch_size=batch_size, quiet=not share.leads)
        share.wait()
        if share.leads:
            show_report(store, **options)


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


def _questions(
    suite: str, perspective: str, *, data: str, revision: str | None, num_pairs: int, seed: int
) -> tuple[QuestionTable, dict[str, Any]]:
    """The questions, and what they depend on."""
    from fk_reward.benchmarks.mjbench.questions import HUB_DATASET, HUB_REVISION, open_questions
    from fk_reward.benchmarks.mjbench.shapes import shapes_questions

    if suite == SHAPES:
        if data != HUB_DATASET or revision is not None:
            raise ValueError("--data and --revision are for the official suite; the pictures of shapes are rendered.")
        return shapes_questions(perspective, num_pairs, seed=seed), {"seed": seed}
    if suite != OFFICIAL:
        raise ValueError(f"--suite should be {OFFICIAL} or {SHAPES}, got {suite!r}.")
    revision = HUB_REVISION if revision is None and data == HUB_DATASET else revision
    questions = open_questions(data, perspective, revision=revision)
    return questions, {"data": data, "revision": revision, "digest": questions.digest()}


def _load_reward(reward: str | None, adapter: Path | None, *, suite: str, device: str) -> tuple[str, Reward]:
    from fk_reward.rewards import load_reward

    if reward is not None and adapter is not None:
        raise ValueError("Name a --reward or the folder of an --adapter, not both.")
    if reward is None and adapter is None and suite != SHAPES:
        raise ValueError("Name a --reward, or the folder of an --adapter.")
    if adapter is not None:
        return str(adapter), load_reward("llava-reward", adapter=adapter).to(device)
    name = reward or DEFAULT_EMBEDDED_REWARD
    return name, load_reward(name).to(device)


def _open_store(
    folder: Path, reward: Reward, name: str, questions: QuestionTable, *, source: Mapping[str, Any]
) -> ResultStore:
    """The store of these questions and these very weights; a folder of others is refused."""
    from fk_reward.benchmarks.preferences import compares
    from fk_reward.benchmarks.store import ResultStore, weights_digest

    settings = {"reward": name, "perspective": questions.perspective, "num_questions": len(questions), **source}
    return ResultStore(folder, settings | {"compares": compares(reward), "weights": weights_digest([reward])})


def _run(
    reward: Reward,
    questions: QuestionTable,
    store: ResultStore,
    *,
    shard: tuple[int, int],
    batch_size: int,
    quiet: bool,
) -> None:
    """Score what is missing, with a line on the terminal after each batch."""
    from fk_reward.benchmarks.mjbench.answers import run_missing

    started = time.perf_counter()
    for done, todo in run_missing(reward, questions, store, shard=shard, batch_size=batch_size):
        seconds = time.perf_counter() - started
        if not quiet:
            typer.echo(f"{done}/{todo} questions, {seconds:.0f} s, {seconds / done * (todo - done):.0f} s left")
