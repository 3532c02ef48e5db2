"""What a command line of `fk-reward geneval` asks for, and the stages that it runs through."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fk_reward.benchmarks.report import show_table
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.output_folder import hold_folder_together
from fk_reward.terminal import Console, open_console, say
from fk_reward.value_checks import parse_integers

if TYPE_CHECKING:
    from accelerate import PartialState

STAGES = ("generate", "judge", "report")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command line.

    Attributes:
        out: folder of the runs.
        suite: name of the suite.
        stages: of `STAGES`.
        preset: name of a preset.
        methods: how pictures are made; none for all ways.
        typed: settings of the runs that were typed, see `plan_runs`.
        heldout: names of rewards that only score.
        prompts: file of other records.
        num_prompts: of the shapes world.
        models: of the judge.
        self_test: whether the judge must pass its self-test.
        device: as typed.
        dtype: as typed.
        num_shown: prompts with pictures in the HTML page.

    Raises:
        ValueError: for an unknown stage.
    """

    out: Path
    suite: str
    stages: tuple[str, ...]
    preset: str | None
    methods: tuple[str, ...]
    typed: Mapping[str, Any]
    heldout: tuple[str, ...]
    prompts: Path | None
    num_prompts: int | None
    models: Mapping[str, str | None]
    self_test: bool
    device: str
    dtype: str
    num_shown: int

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise ValueError(f"--stage should be one of {', '.join(STAGES)}, got {unknown[0]!r}.")


def run_request(request: Request) -> None:
    """Run through the stages; the first of several processes tells how far it is and writes the report.

    Raises:
        ValueError: settings, folders or pictures that do not fit.
        OSError: missing folders, files or models.
    """
    from fk_reward.benchmarks.runner import join_processes

    device = resolve_device(request.device)
    state = join_processes(device)
    console = open_console(quiet=not state.is_main_process)
    if "generate" not in request.stages and not request.out.is_dir():
        raise NotADirectoryError(f"There is no folder {request.out}.")
    writes = {"generate", "judge"} & set(request.stages)  # a report may be looked at while others work
    with hold_folder_together(request.out, state) if writes else nullcontext():
        if "generate" in request.stages:
            _generate(request, state=state, device=device, console=console)
        if "judge" in request.stages:
            _judge(request, state=state, device=device, console=console)
    if "report" in request.stages and state.is_main_process:
        _report(request)


def _generate(request: Request, *, state: PartialState, device: str, console: Console) -> None:
    from fk_reward.benchmarks.geneval.progress import watch
    from fk_reward.benchmarks.geneval.settings import METHODS, describe_preset, find_preset, plan_runs
    from fk_reward.benchmarks.geneval.stages import generate_runs
    from fk_reward.benchmarks.geneval.suites import suite_records
    from fk_reward.rewards.vlm_judge.credentials import redact_text

    typed = _parsed(request.typed)
    preset = None if request.preset is None else find_preset(request.preset)
    records = suite_records(request.suite, prompts=request.prompts, num_prompts=request.num_prompts)
    runs = plan_runs(request.suite, methods=request.methods or METHODS, preset=preset, typed=typed)
    about: dict[str, Any] = {"command": redact_text(" ".join(["fk-reward", *sys.argv[1:]]))}
    if preset is not None:
        about["preset"] = describe_preset(str(request.preset), preset, typed)
    dtype = resolve_dtype(request.dtype, device)
    steps = generate_runs(request.out, runs, records=records, state=state, device=device, dtype=dtype, about=about)
    watch(steps, console=console)


def _judge(request: Request, *, state: PartialState, device: str, console: Console) -> None:
    from fk_reward.benchmarks.geneval.judge import SelfTestError
    from fk_reward.benchmarks.geneval.progress import watch
    from fk_reward.benchmarks.geneval.stages import judge_runs, score_runs
    from fk_reward.benchmarks.geneval.suites import suite_records

    records = suite_records(request.suite, prompts=request.prompts, num_prompts=request.num_prompts)
    work: dict[str, Any] = {"records": records, "state": state, "device": device}
    judging: dict[str, Any] = {"suite": request.suite, "models": request.models, "self_test": request.self_test}
    try:
        watch(judge_runs(request.out, **judging, **work), console=console)
    except SelfTestError as error:
        raise ValueError(f"{error} Nothing was judged; --skip-self-test judges all the same.") from error
    watch(score_runs(request.out, request.heldout, **work), console=console)


def _report(request: Request) -> None:
    from fk_reward.benchmarks.geneval.report import write_report

    report = write_report(request.out, num_shown=request.num_shown)
    say(report.title)
    for table in report.tables:
        show_table(*table)
    say(f"Report: {', '.join(map(str, report.files))}")


def _parsed(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The typed settings with their texts read."""
    from fk_reward.search.feynman_kac import parse_reward_scale

    readers = {"num_particles": lambda text: parse_integers("num_particles", text), "reward_scale": parse_reward_scale}
    return {name: readers[name](value) if name in readers else value for name, value in typed.items()}
