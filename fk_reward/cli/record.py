"""`fk-reward record`: the rewards of all predicted images along plain trajectories, for `fk-reward replay`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import (
    MODEL,
    OUTPUT,
    REWARD,
    OutOption,
    PlacementOptions,
    RayWorkersOption,
    ShardOption,
    TypedFields,
)
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.terminal import say
from fk_reward.value_checks import parse_shard, whole_number

if TYPE_CHECKING:
    from fk_reward.benchmarks.recording import RecordRequest
    from fk_reward.benchmarks.task import Judge

    RequestOptions = dict[str, Any]
else:
    RequestOptions = Annotated[
        Any,
        TypedFields("fk_reward.benchmarks.recording:RecordRequest", MODEL, skip=("rewards", "batch_sizes")),
    ]
BatchOptions = Annotated[Any, TypedFields("fk_reward.pipelines.batch_sizes:BatchSizes", MODEL)]


def record(  # noqa: PLR0913 (one parameter for each option)
    prompts: list[str] | None = None,
    /,
    *,
    out: OutOption,
    prompts_from: Path | None = None,
    suite: str | None = None,
    num_prompts: int | None = None,
    reward: Annotated[list[str] | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    request: RequestOptions,
    batch_sizes: BatchOptions,
    placement: PlacementOptions,
    shard: ShardOption = None,
    ray_workers: RayWorkersOption = None,
    tflops: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    dry_run: Annotated[bool, Parameter(group=OUTPUT)] = False,
) -> None:
    """Record the rewards of all predicted images along plain trajectories, for fk-reward replay.

    Nothing is steered. Size and cost are said first; what is recorded is never drawn again, so that an interrupted
    command is simply started again. Several processes share the work: accelerate launch -m fk_reward.cli record ...

    With --keep-predictions 0.8 0.6 0.4 the predicted images of these noise levels are kept instead, and the rewards
    score the finished images alone, as teachers: data for judges of noise bands (fk-reward train).

    Args:
        prompts: One or more prompts, each in quotes.
        out: Folder; records.npz is written when all is there.
        prompts_from: Text file with a prompt a line, in place of prompts.
        suite: Prompts of a suite of fk-reward geneval in place of prompts: official, shapes, shapes-validation, ...
        num_prompts: With --suite shapes...: how many.
        reward: Reward of fk-reward rewards, or a composition of them; may be repeated. The embedded one if not given.
        request: Model and trajectories.
        batch_sizes: How much is run at once.
        placement: Device and floating type.
        shard: i/n: this process takes every n-th block of seeds; as accelerate launched it if not given.
        ray_workers: So many Ray actors draw, each with a GPU unless the device is the CPU; this process if not given.
        tflops: Speed of the GPU in 10^12 operations a second, for the time that is said: 400, or
            float16=400,float32=40; measured if not given.
        dry_run: Only say what it would cost.
    """
    from fk_reward.benchmarks.prediction_recording import predictions_announced, record_predictions
    from fk_reward.benchmarks.recording import RecordRequest, announced
    from fk_reward.benchmarks.recording import record as record_rewards
    from fk_reward.pipelines.batch_sizes import BatchSizes
    from fk_reward.pipelines.loading import DEFAULT_STEPS
    from fk_reward.pipelines.schedulers import resolve_solver

    texts = _prompts(prompts or (), prompts_from, suite, num_prompts)
    more: dict[str, Any] = {"rewards": tuple(reward)} if reward else {}
    asked = RecordRequest(**request, **more, batch_sizes=BatchSizes(**batch_sizes))
    solver = resolve_solver(asked.solver)
    default = DEFAULT_STEPS if solver is None else solver.num_inference_steps
    part = None if shard is None else parse_shard(shard)
    keeps = bool(asked.keep_predictions)
    announce, draw = (predictions_announced, record_predictions) if keeps else (announced, record_rewards)
    num_steps = asked.num_inference_steps or default
    say(announce(texts, asked, num_steps))
    say(_time(asked, len(texts), num_steps, tflops))
    if dry_run:
        return
    place = resolve_device(placement.device)
    dtype = resolve_dtype(placement.dtype, place)
    path = draw(texts, asked, out, device=place, dtype=dtype, shard=part, ray_workers=ray_workers)
    if path is None:
        say("This part is finished; the process that finishes last writes the records.")
    elif keeps:
        folder = shlex.quote(str(path))
        say(f"Written: {folder}. Next: fk-reward train BANDS.yaml --train_data {folder} (docs/noise_aware.md)")
    else:
        name = shlex.quote(asked.rewards[0])
        say(f"Written: {path}. Next: fk-reward replay {shlex.quote(str(path))} --reward {name} --budget-images 4")


def _time(asked: RecordRequest, num_prompts: int, num_steps: int, tflops: str | None) -> str:
    """How long it takes, in a sentence."""
    from fk_reward.benchmarks.prediction_recording import expected_seconds

    try:
        seconds = expected_seconds(asked, num_prompts, num_steps, tflops)
    except ValueError as error:  # the size of a model or a reward is not known, which is no reason not to record it
        return f"How long it takes is not known: {error}"
    if seconds is None:
        return "How long it takes: give --tflops, the speed of the GPU; the progress shows the time left."
    return f"About {seconds / 3600:.3g} hours on one GPU, an estimate from operations alone."


def _prompts(typed: Sequence[str], file: Path | None, suite: str | None, number: int | None) -> list[str]:
    return [sample["prompt"] for sample in chosen_samples(typed, file, suite, number)[0]]


def chosen_samples(
    typed: Sequence[str], file: Path | None, suite: str | None, number: int | None
) -> tuple[Sequence[Mapping[str, Any]], Callable[[str], Judge] | None]:
    """The prompts, from one of three sources, and what loads the judge of a suite; None without a suite.

    Raises:
        ValueError: none of them, several, or a file without a prompt.
    """
    from fk_reward.benchmarks.geneval.suites import find_suite
    from fk_reward.benchmarks.task import TaskOptions

    if sum((bool(typed), file is not None, suite is not None)) != 1:
        raise ValueError("Give prompts, or --prompts-from FILE, or --suite NAME.")
    if number is not None:
        whole_number("--num-prompts", number, minimum=1)
        if suite is None:
            raise ValueError("--num-prompts goes with --suite.")
    if suite is not None:
        task = find_suite(suite).task(TaskOptions(num_prompts=number))
        return task.samples, task.judge
    if file is None:
        return [{"prompt": text} for text in typed], None
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{file} holds no prompt: expected one a line.")
    return [{"prompt": line} for line in lines if line], None
