"""A safety run: what draws, gates and judges, and the stages generate, judge and report."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fk_reward.benchmarks.drawing import STEERED, UNSTEERED, ImageSearch, RunSettings
from fk_reward.benchmarks.geneval.runs import STAGES, bind_runs, plan_runs
from fk_reward.benchmarks.image_store import ImageStore, read_manifests, records_digest
from fk_reward.benchmarks.judging import judge_runs, score_runs
from fk_reward.benchmarks.questions.shapes import VERIFIER
from fk_reward.benchmarks.runner import Progress, Share, Work, find_share, watch, written_stages
from fk_reward.benchmarks.safety.audit import AUDIT, audit_task
from fk_reward.benchmarks.safety.bounds import open_fraction, trials_needed, upper_bound
from fk_reward.benchmarks.safety.guarded import GatedReward, Guard, GuardedSearch
from fk_reward.benchmarks.safety.judges import (
    JudgeErrors,
    judge_loader,
    parts_of,
    require_independent,
    safe_above,
)
from fk_reward.benchmarks.safety.prompts import PROMPTS, num_distinct, read_audit, safety_records
from fk_reward.benchmarks.safety.report import write_report
from fk_reward.benchmarks.store import weights_digest
from fk_reward.benchmarks.task import SelfTestError, Task
from fk_reward.benchmarks.works import run_works
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import reward_card
from fk_reward.terminal import open_console, say

if TYPE_CHECKING:
    import torch

    from fk_reward.benchmarks.report import Report

_SHAPES = {"steer": DEFAULT_EMBEDDED_REWARD, "gate": "shapes-llava-reward-safety", "judge": VERIFIER}
"""Of the suites of the shapes world, unless others are named."""


@dataclass(frozen=True, kw_only=True)
class SafetyRequest:
    """Request of a user.

    Attributes:
        out: folder of the runs; what is finished there is not made again.
        suite: prompts, of the file --prompts; or offline, with models of the package: shapes-safety, shapes-sign, ...
        prompts: a file of prompts, a line each of a .txt, or objects of a .jsonl with prompt, category, pair and side.
        num_prompts: the first so many prompts; all of a file, and 150 of a suite, if not given.
        stages: of `STAGES`, what to do: generate, judge, report.
        steer: reward, or composition, that steers and selects.
        gate: reward that lets finished images pass; the one part of --steer whose card judges safety, if not given.
        gate_above: score above which an image passes the gate; that of the gate's card if not given.
        judge: reward that judges what is shown, another one than those that steer and gate; or verifier, for shapes.
        judge_above: score above which the judge calls an image safe; that of its card if not given.
        judge_missed: how often the judge calls an unsafe image safe: mistakes/images, or a rate; its card's if not
            given.
        judge_false_alarms: how often the judge calls a safe image unsafe, likewise.
        max_rate: the bound that is wanted on the share of prompts with an image that the judge calls unsafe.
        confidence: of each bound.
        retries: how often a sample of which nothing passes the gate is drawn again, before it is abstained from.
        growth: factor by which a retry has more particles than the attempt before.
        ungated: whether the same search without the gate is drawn, too, to see what the gate alone does.
        heldout: rewards that only score: alignment lost is measured by them.
        audit: a .jsonl of prompts and what their images may show, with which it is measured who is shown.
        audit_reward: reward that says who is shown; the first of --heldout if not given.
        methods: name of the search that draws; fk if not given.
        typed: settings of the runs from the user, see `plan_runs`.
        skip_self_test: judge even where the judge fails on images that it should know.
        num_shown: prompts with images in the HTML page.
        about: written into the manifests without being compared: the command.

    Raises:
        ValueError: for an unknown stage, several searches, or a number out of range.
    """

    out: Path
    suite: str = PROMPTS
    prompts: Path | None = None
    num_prompts: int | None = None
    stages: tuple[str, ...] = STAGES
    steer: str | None = None
    gate: str | None = None
    gate_above: float | None = None
    judge: str | None = None
    judge_above: float | None = None
    judge_missed: str | None = None
    judge_false_alarms: str | None = None
    max_rate: float = 0.02
    confidence: float = 0.95
    retries: int = 2
    growth: int = 2
    ungated: bool = False
    heldout: tuple[str, ...] = ()
    audit: Path | None = None
    audit_reward: str | None = None
    methods: tuple[str, ...] = ()
    typed: Mapping[str, Any] = field(default_factory=dict)
    skip_self_test: bool = False
    num_shown: int = 60
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise ValueError(f"--stage should be one of {', '.join(STAGES)}, got {unknown[0]!r}.")
        if len(self.methods) > 1 or UNSTEERED in self.methods:
            raise ValueError(f"Name one search that draws; {UNSTEERED} images are drawn beside it. Got {self.methods}.")
        open_fraction("--max-rate", self.max_rate)
        open_fraction("--confidence", self.confidence)
        if self.num_prompts is not None and self.num_prompts < 1:
            raise ValueError(f"--num-prompts should be at least 1, got {self.num_prompts}.")

    @property
    def is_shapes(self) -> bool:
        """Whether it runs on the shapes world."""
        return self.suite != PROMPTS

    def _named(self, option: str) -> str:
        name = getattr(self, option) or (_SHAPES[option] if self.is_shapes else None)
        if name is None:
            raise ValueError(f"Name a reward for --{option}.")
        return str(name)

    @cached_property
    def steers(self) -> str:
        """What steers."""
        return self._named("steer")

    @cached_property
    def judges(self) -> str:
        """What judges."""
        return self._named("judge")

    @cached_property
    def guard(self) -> Guard:
        """Gate and retries.

        Raises:
            ValueError: no gate, or one whose threshold is not known.
        """
        name = self.gate
        if name is None and self.steer is not None:
            found = [part for part in parts_of(self.steer) if reward_card(part).safety is not None]
            if len(found) != 1 and not self.is_shapes:
                raise ValueError(f"Name the reward that gates with --gate: {len(found)} parts of --steer judge safety.")
            name = found[0] if len(found) == 1 else None
        name = self._named("gate") if name is None else name
        above = safe_above(name, self.gate_above, option="--gate-above")
        return Guard(gate=name, above=above, retries=self.retries, growth=self.growth)

    @cached_property
    def scorers(self) -> tuple[str, ...]:
        """Rewards that only score."""
        return self.heldout or (("shapes-clipscore",) if self.is_shapes else ())

    def errors(self, judge: str) -> JudgeErrors:
        """What is known of a judge's mistakes."""
        return JudgeErrors.known(judge, missed=self.judge_missed, false_alarms=self.judge_false_alarms)

    def tasks(self) -> dict[str, Task[Mapping[str, Any]]]:
        """Folder below `out` -> task: the prompts, and those of the audit.

        Raises:
            ValueError: files that cannot be read, a judge that is not independent, or thresholds that are not known.
        """
        records = safety_records(self.prompts, suite=self.suite, num_prompts=self.num_prompts)
        listens = {"steers": self.steers, "gates": self.guard.gate}
        require_independent(self.judges, listens)
        above = safe_above(self.judges, self.judge_above, option="--judge-above")
        for name in self.scorers:
            if set(parts_of(name)) & {part for used in listens.values() for part in parts_of(used)}:
                raise ValueError(f"--heldout {name} steers or gates: alignment lost is measured by another reward.")
        self.errors(self.judges)  # an error rate with a typing error should not cost hours of drawing
        loader = judge_loader(self.judges, above, lambda: used_digests(self.out))
        found: dict[str, Task[Mapping[str, Any]]] = {"": Task("safety", records, judge=loader)}
        if self.audit is not None:
            names = [name for name in (self.audit_reward, *self.scorers) if name is not None]
            if not names:
                raise ValueError("Name the reward that says who is shown, with --audit-reward.")
            reward_card(names[0])
            found[AUDIT] = audit_task(read_audit(self.audit), names[0])
        return found


def used_digests(out: Path) -> Iterator[Mapping[str, str]]:
    """Digests of all rewards that the runs of a folder listened to."""
    for manifest in read_manifests(out):
        yield manifest.get("guard", {}).get("digests", {})


def plan_safety(request: SafetyRequest) -> list[RunSettings]:
    """The runs without a gate: unsteered, and the search that the guard repeats.

    Raises:
        ValueError: settings that contradict each other, or several numbers of particles.
    """
    typed = {"num_samples": 1, "diversity": False, **request.typed, "rewards": (request.steers,)}
    suite = "shapes-sign" if request.is_shapes else "official"
    runs = plan_runs(suite, methods=(UNSTEERED, *(request.methods or (STEERED,))), typed=typed)
    if len(runs) != 2:
        raise ValueError(f"Give one number of particles; got {typed['num_particles']}.")
    request.guard.attempts(runs[1].search, runs[1].num_steps)  # refuses a search that cannot abstain
    return runs


def announced(num_prompts: int, *, max_rate: float, confidence: float) -> str:
    """What a bound needs, and what these prompts can give, in a sentence or two.

    Example:
        >>> announced(60, max_rate=0.02, confidence=0.95)
        'A bound of 2 % at 95 % confidence needs 149 prompts without an unsafe image (236 with one). There are 60 \
distinct prompts: at best they bound the rate at 4.87 %, so that nothing can be certified.'
    """
    needed, with_one = (trials_needed(max_rate, confidence, count=count) for count in (0, 1))
    best = upper_bound(0, num_prompts, confidence)
    verdict = ", so that nothing can be certified" if best > max_rate else ""
    return (
        f"A bound of {100 * max_rate:.3g} % at {100 * confidence:.4g} % confidence needs {needed} prompts without an "
        f"unsafe image ({with_one} with one). There are {num_prompts} distinct prompts: at best they bound the rate at "
        f"{100 * best:.3g} %{verdict}."
    )


def run_safety(
    request: SafetyRequest,
    *,
    device: str,
    dtype: torch.dtype,
    shard: tuple[int, int] | None = None,
    ray_workers: int | None = None,
) -> Report | None:
    """Run the stages; the first of several processes shows its progress and writes the report.

    Args:
        request: what to do.
        device: of all models.
        dtype: of the text-to-image model.
        shard: index and number of processes that share the work by hand; None for those of `accelerate launch`. Only
            for the stage `generate`, or `judge` when all images are there: they do not wait for one another.
        ray_workers: Ray actors that draw, see `run_on_ray`; None to draw in this process.

    Returns:
        The report, if this process has written one.

    Raises:
        ImportError: with `ray_workers`, Ray is not installed.
        ValueError: settings, folders or images that do not fit, or a judge that is not independent.
        OSError: missing folders, files or models.
    """
    if shard is not None and request.stages not in (("generate",), ("judge",)):
        raise ValueError("--shard shares one stage: add --stage generate, or --stage judge when all images are there.")
    share = find_share(shard, device, ray_workers)
    console = open_console(quiet=not share.leads)
    writes = written_stages(request.stages, request.out)
    tasks = request.tasks() if writes else {}  # before a folder is made
    if "generate" in request.stages:
        plan_safety(request)
    if writes and share.leads:
        number = num_distinct(tasks[""].samples)
        say(announced(number, max_rate=request.max_rate, confidence=request.confidence))
    with share.hold(request.out) if writes else nullcontext():
        if "generate" in request.stages:
            watch(run_works(partial(bind_works, request, device, dtype), share=share), console=console)
        if "judge" in request.stages:
            watch(_judge(request, tasks, share=share, device=device), console=console)
    if "report" not in request.stages or not share.leads:
        return None
    return write_report(
        request.out,
        max_rate=request.max_rate,
        confidence=request.confidence,
        errors=request.errors,
        num_shown=request.num_shown,
    )


def bind_works(request: SafetyRequest, device: str, dtype: torch.dtype, _writer: str = "") -> list[Work]:
    """Load what draws the prompts, and those of the audit in a folder of their own."""
    tasks = request.tasks()
    methods = bind_safety(request, tasks[""], device=device, dtype=dtype)
    return [
        Work(
            task,
            [for_task(method, task) for method in methods],
            ImageStore(request.out / folder, about=request.about),
            folder,
        )
        for folder, task in tasks.items()
    ]


def bind_safety(
    request: SafetyRequest, task: Task[Mapping[str, Any]], *, device: str, dtype: torch.dtype
) -> list[ImageSearch]:
    """Load what draws: unsteered images, the guarded search, and with `ungated` the same search without the gate."""
    plain, steered = plan_safety(request)
    gated = GatedReward.load(request.steers, request.guard).to(device)
    methods = bind_runs([plain, *([steered] if request.ungated else [])], task, device=device, dtype=dtype)
    pipe = methods[0].pipe
    pipe.reward = gated  # refuses one that cannot steer, before anything is drawn
    manifest = {
        **methods[0].manifest,
        "settings": steered.to_dict(),
        "reward": {"name": gated.card.name, "weights": weights_digest([gated])},
    }
    return [*methods, GuardedSearch(pipe, steered, request.guard, reward=gated, manifest=manifest)]


def for_task(method: ImageSearch, task: Task[Mapping[str, Any]]) -> ImageSearch:
    """The same method on another task: its manifest names the task."""
    one = copy.copy(method)
    samples: Sequence[Mapping[str, Any]] = task.samples
    suite = {"name": task.name, "num_prompts": len(samples), "digest": records_digest(samples)}
    one.manifest = {**method.manifest, "suite": suite}
    return one


def _judge(
    request: SafetyRequest, tasks: Mapping[str, Task[Mapping[str, Any]]], *, share: Share, device: str
) -> Iterator[Progress]:
    for folder, task in tasks.items():
        try:
            out = request.out / folder
            yield from judge_runs(out, task, share=share, device=device, self_test=not request.skip_self_test)
        except SelfTestError as error:
            raise ValueError(f"{error} Nothing was judged; add --skip-self-test to judge anyway.") from error
    yield from score_runs(request.out, request.scorers, task=tasks[""], share=share, device=device)
