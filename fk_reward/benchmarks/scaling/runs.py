"""A scaling run: which searches are drawn at which budgets, and the stages generate, judge and report.

Each budget and number of steps has a folder of runs of its own, since K and a reward alone do not name a search there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fk_reward.benchmarks.drawing import BEST, UNSTEERED, RunSettings
from fk_reward.benchmarks.geneval.runs import STAGES, bind_runs, plan_runs
from fk_reward.benchmarks.geneval.suites import SUITES, find_suite
from fk_reward.benchmarks.image_store import ImageStore
from fk_reward.benchmarks.judging import judge_runs, score_runs
from fk_reward.benchmarks.runner import Progress, Share, Work, find_share, watch, within, written_stages
from fk_reward.benchmarks.scaling.points import PLAIN, run_folders
from fk_reward.benchmarks.scaling.report import write_report
from fk_reward.benchmarks.task import NOBODY, SelfTestError, Task, TaskOptions, Verdict
from fk_reward.benchmarks.works import run_works
from fk_reward.rewards import reward_card
from fk_reward.rewards.noise_bands import name_without_bands
from fk_reward.terminal import open_console
from fk_reward.text import text_problem
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from fk_reward.benchmarks.report import Report

OFFICIAL, PROMPTS = "official", "prompts"
IMAGES = (4, 8, 16)
"""Plain images whose cost is a budget where none is named."""


@dataclass(frozen=True, kw_only=True)
class ScalingRequest:
    """Request of a user.

    Attributes:
        out: folder of the runs; what is finished there is not made again.
        suite: shapes, shapes-sign, ...: offline, with models of the package; geneval; prompts: the lines of the file
            of --prompts, without a judge.
        stages: of `STAGES`, what to do: generate, judge, report.
        methods: names of searches; best of N is always drawn beside them.
        budgets: sample steps of an image, each of which is a point of every method's curve; what `IMAGES` plain images
            cost if none is named.
        baseline_steps: further numbers of steps of best of N, which fewer steps give more images.
        typed: settings of the runs from the user, see `plan_runs`.
        heldout: rewards that only score.
        task_options: prompts and judge.
        skip_self_test: judge even where the judge fails on images that it should know.
        num_shown: prompts with images in the HTML page.
        about: written into the manifests without being compared: the command.

    Raises:
        ValueError: for an unknown stage or suite, or a budget below 1.
    """

    out: Path
    suite: str = "shapes"
    stages: tuple[str, ...] = STAGES
    methods: tuple[str, ...] = ()
    budgets: tuple[int, ...] = ()
    baseline_steps: tuple[int, ...] = ()
    typed: Mapping[str, Any] = field(default_factory=dict)
    heldout: tuple[str, ...] = ()
    task_options: TaskOptions = TaskOptions()
    skip_self_test: bool = False
    num_shown: int = 24
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise ValueError(f"--stage should be one of {', '.join(STAGES)}, got {unknown[0]!r}.")
        whole_number("--num-shown", self.num_shown, minimum=1)
        for name, numbers in (("--budgets", self.budgets), ("--baseline-steps", self.baseline_steps)):
            for number in numbers:
                whole_number(name, number, minimum=1)

    @property
    def defaults(self) -> str:
        """The suite whose settings the runs have by default."""
        return OFFICIAL if self.suite in ("geneval", PROMPTS) else self.suite

    def task(self) -> Task[Mapping[str, Any]]:
        """Prompts and judge.

        Raises:
            ValueError: for an unknown suite.
        """
        if self.suite == PROMPTS:
            return plain_task(self.task_options)
        if self.defaults not in SUITES:
            raise ValueError(f"The suite should be one of geneval, {PROMPTS}, {', '.join(SUITES)}, got {self.suite!r}.")
        return find_suite(self.defaults).task(self.task_options)


def plan_scaling(request: ScalingRequest) -> dict[str, list[RunSettings]]:
    """The runs of each folder.

    Args:
        request: what to do.

    Returns:
        Folder -> runs: plain images, and at each budget best of N and the other methods by each reward; then best of N
        at the other numbers of steps.

    Raises:
        ValueError: a budget that does not buy a search, by name; settings that contradict each other; a single image of
            each prompt, of which no spread within a prompt can be known.

    Example:
        >>> typed = {"rewards": ("shapes-clipscore",), "num_steps": 20}
        >>> numbers = {"budgets": (80,), "baseline_steps": (10,)}
        >>> asked = ScalingRequest(out=Path("."), typed=typed, **numbers)
        >>> {folder: [run.name for run in runs] for folder, runs in plan_scaling(asked).items()}
        {'plain': ['unsteered'], 'budget-80-steps-20': ['best-of-4-shapes-clipscore'], \
'budget-80-steps-10': ['best-of-8-shapes-clipscore']}
    """
    typed = {"diversity": True, **request.typed}
    (plain,) = plan_runs(request.defaults, methods=(UNSTEERED,), typed=typed)
    if plain.num_samples < 2:
        raise ValueError("--num-samples should be at least 2: rewards are reported in their spread within a prompt.")
    methods = tuple(dict.fromkeys((BEST, *request.methods)))
    if UNSTEERED in methods:
        raise ValueError(f"{UNSTEERED} images are always drawn: leave --method {UNSTEERED} out.")
    planned = {PLAIN: [plain]}
    own = plain.num_steps
    for budget in request.budgets or [number * own for number in IMAGES]:
        for steps in dict.fromkeys((own, *request.baseline_steps)):
            if budget < 2 * steps:
                raise ValueError(
                    f"--budgets: {budget} sample steps are less than two images of {steps} steps, of which one is "
                    "chosen: raise the budget, or take fewer steps."
                )
            if budget % steps:
                raise ValueError(
                    f"--budgets: {budget} sample steps are no whole number of images of {steps} steps, so that best of "
                    f"N would have less to spend than other searches: take {budget - budget % steps}."
                )
            settings = {**typed, "budget": budget, "num_steps": steps}
            if steps != own:  # the other methods' settings mean nothing there
                settings = {name: value for name, value in settings.items() if name in _OF_ALL}
            runs = plan_runs(request.defaults, methods=methods if steps == own else (BEST,), typed=settings)
            planned[f"budget-{budget}-steps-{steps}"] = [run for run in runs if not _drawn_without_bands(run, runs)]
    return planned


def _drawn_without_bands(run: RunSettings, runs: Sequence[RunSettings]) -> bool:
    """Whether it is best of N by a reward with noise bands, and is planned without: finished images have none."""
    plain = name_without_bands(run.reward or "")
    return run.method == BEST and plain != run.reward and any(one.reward == plain for one in runs)


_OF_ALL = {*RunSettings.__dataclass_fields__, "rewards", "budget", "batch_size", "batch_sizes"}


def run_scaling(
    request: ScalingRequest,
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
        ValueError: settings, folders or images that do not fit.
        OSError: missing folders, files or models.
    """
    if shard is not None and request.stages not in (("generate",), ("judge",)):
        raise ValueError("--shard shares one stage: add --stage generate, or --stage judge when all images are there.")
    share = find_share(shard, device, ray_workers)
    console = open_console(quiet=not share.leads)
    writes = written_stages(request.stages, request.out)
    if writes:
        task = request.task()
        if draws := "generate" in request.stages:
            plan_scaling(request)  # before a folder is made
        for name in scored_by(request):
            reward_card(name)  # a misspelt one should not cost hours of drawing
        with share.hold(request.out):
            if draws:
                watch(run_works(partial(bind_works, request, device, dtype), share=share), console=console)
            if "judge" in request.stages:
                watch(_judge(request, task, share=share, device=device), console=console)
    reports = "report" in request.stages and share.leads
    return write_report(request.out, num_shown=request.num_shown) if reports else None


def bind_works(request: ScalingRequest, device: str, dtype: torch.dtype, _writer: str = "") -> list[Work]:
    """Load what draws the runs of each folder; they share the model."""
    task, planned = request.task(), plan_scaling(request)
    bound = iter(bind_runs([one for runs in planned.values() for one in runs], task, device=device, dtype=dtype))
    return [
        Work(task, [next(bound) for _ in runs], ImageStore(request.out / folder, about=request.about), folder)
        for folder, runs in planned.items()
    ]


def _judge(request: ScalingRequest, task: Task[Mapping[str, Any]], *, share: Share, device: str) -> Iterator[Progress]:
    task = replace(task, judge=cache(task.judge))  # its models are loaded once for all folders
    folders = run_folders(request.out)
    for folder in folders:
        try:
            verdicts = judge_runs(folder, task, share=share, device=device, self_test=not request.skip_self_test)
            yield from within(folder.name, verdicts)
        except SelfTestError as error:
            raise ValueError(f"{error} Nothing was judged; add --skip-self-test to judge anyway.") from error
    for folder in folders:  # every reward scores every image: who steers here is held out there
        scores = score_runs(folder, scored_by(request), task=task, share=share, device=device)
        yield from within(folder.name, scores)


def scored_by(request: ScalingRequest) -> tuple[str, ...]:
    """The rewards that score all images: of one with noise bands what it is without, which finished images know."""
    rewards = request.typed.get("rewards") or find_suite(request.defaults).defaults.get("rewards", ())
    return tuple(dict.fromkeys(map(name_without_bands, (*rewards, *request.heldout))))


class NoJudge:
    """Stands where a judge would."""

    identity: ClassVar[dict[str, Any]] = {"judge": NOBODY}

    def judge_images(self, samples: Sequence[Any], images: Sequence[Image.Image]) -> list[Verdict]:  # noqa: ARG002
        """No verdict on each image."""
        return [Verdict(False, "not judged") for _ in images]

    def self_test(self) -> None:
        """There is nothing to test."""


def plain_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """The lines of a file as prompts.

    Raises:
        ValueError: no file, no prompt in it, or one that is no text.
    """
    if options.prompts is None:
        raise ValueError("The suite prompts reads its prompts from a file, a line each: --prompts FILE.")
    prompts = _lines(options.prompts)[: options.num_prompts]
    return Task("prompts", tuple({"tag": "prompts", "prompt": prompt} for prompt in prompts), lambda device: NoJudge())


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one in each line.")
    for prompt in prompts:
        if (problem := text_problem(prompt)) is not None:
            raise ValueError(f"{path}: of a prompt: {problem}")
    return prompts
