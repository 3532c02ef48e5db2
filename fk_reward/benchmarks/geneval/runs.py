"""A GenEval run: presets of papers, the requested methods, and the stages generate, judge and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fk_reward.benchmarks.drawing import (
    METHODS,
    STEERED,
    UNSTEERED,
    ImageSearch,
    RunSettings,
    check_method,
    describe_model,
    describe_preview,
    load_pipe,
    make_manifest,
    make_search,
    noise_of_steps,
)
from fk_reward.benchmarks.geneval.suites import find_suite
from fk_reward.benchmarks.image_report import Report, write_report
from fk_reward.benchmarks.image_store import ImageStore
from fk_reward.benchmarks.judging import judge_runs, score_runs
from fk_reward.benchmarks.runner import Progress, Share, Work, find_share, watch, written_stages
from fk_reward.benchmarks.task import SelfTestError, Task, TaskOptions
from fk_reward.benchmarks.works import run_works
from fk_reward.rewards import load_reward
from fk_reward.search import ChosenByCall, FKSteeringConfig, SearchConfig, search_class, search_fields
from fk_reward.search.budget import check_typed_sizes, fit_budget
from fk_reward.search.feynman_kac import PAPER
from fk_reward.search.registry import search_config
from fk_reward.terminal import open_console
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    import torch

STAGES = ("generate", "judge", "report")

FK_STEERING = PAPER
"""Four particles, scored at 20, 40, 60 and 80 of 100 steps."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a paper.

    Attributes:
        source: where they come from, and what the source leaves open.
        model: the first of the models that the paper steers.
        reward: the reward that steers.
        num_steps: scheduler steps.
        scheduler: DDIM, which runs with eta 1.
        num_samples: images of a prompt.
        steering: settings of the sampler.
    """

    source: str
    reward: str
    model: str = "sd-2.1"
    num_steps: int = 100
    scheduler: str = "ddim"
    num_samples: int = 4
    steering: FKSteeringConfig = FK_STEERING


PRESETS: dict[str, Preset] = {
    "fk-paper": Preset(
        source="Singhal et al. 2025, arXiv 2501.06848: text-to-image experiments. Four images of a prompt, as in "
        "GenEval's own script; resampled where the ESS falls below half of K.",
        reward="imagereward",
    ),
    "llava-reward-paper": Preset(
        source="Zhou et al. 2025, arXiv 2507.21391: inference-time scaling with FK steering's public code. Settings of "
        "the sampler are fk-paper's; lambda 10 is one over the temperature 0.1 that the reward was trained with.",
        reward="llava-reward-alignment",
    ),
}
"""Name -> settings."""


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: unknown; the message lists the names.

    Example:
        >>> preset = find_preset("fk-paper")
        >>> preset.steering.scoring_steps(preset.num_steps), preset.steering.reward_scale, preset.steering.potential
        ((20, 40, 60, 80), 10.0, 'max')
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


ROWS = 16
"""Particles in one call, unless a sample has more."""


def plan_runs(
    suite: str, *, methods: Sequence[str] = METHODS, preset: Preset | None = None, typed: Mapping[str, Any]
) -> list[RunSettings]:
    """The runs: each method, and those with a reward for each reward and K.

    Args:
        suite: name of the suite.
        methods: `"unsteered"`, and names of searches.
        preset: settings of a paper.
        typed: settings from the user, which override the preset and the suite's defaults: fields of `RunSettings` and
            of the searches; `rewards`, names; `num_particles`, several K; `budget`, sample steps of an image, which
            sets the sizes of every search.

    Returns:
        Unsteered first, then by K.

    Raises:
        ValueError: settings that contradict each other, or no reward.

    Example:
        >>> [run.name for run in plan_runs("shapes", typed={"num_particles": (2, 4), "rewards": ("clipscore",)})]
        ['unsteered', 'best-of-2-clipscore', 'fk-2-clipscore', 'best-of-4-clipscore', 'fk-4-clipscore']
    """
    for method in methods:
        check_method(method)
    options, settings = _options(suite, preset, typed)
    rewards, sizes, rows = (options.pop(name) for name in ("rewards", "num_particles", "batch_size"))
    budget = options.pop("budget", None)
    searches = [method for method in dict.fromkeys((*METHODS, *methods)) if method in methods and method != UNSTEERED]
    _refuse_unused(settings, searches)
    if searches and not rewards:
        raise ValueError(f"Name a reward (--reward) for {', '.join(searches)}.")
    plain = RunSettings(suite=suite, method=UNSTEERED, search=make_search(UNSTEERED), batch_size=rows, **options)
    runs = [plain]
    for size in sorted(sizes, key=lambda size: size or 0):
        size_of = {} if size is None else {"num_particles": size}
        configs = {m: make_search(m, solver=plain.solver, **settings, **size_of) for m in searches}
        if budget is not None:
            for method, config in configs.items():
                # one that chooses has sizes of its own, which are not those of what it chose
                asked = search_config(method) if issubclass(search_class(method), ChosenByCall) else config
                check_typed_sizes(asked, typed, budget=f"budget={budget}")
            steps, ahead = plain.num_steps, plain.lookahead
            configs = {name: fit_budget(one, budget, steps, lookahead=ahead) for name, one in configs.items()}
        runs += [_steered(plain, *item, reward=name) for name in rewards for item in configs.items()]
    return runs if UNSTEERED in methods else runs[1:]


def _options(suite: str, preset: Preset | None, typed: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the runs, and of the searches."""
    steering = {} if preset is None else preset.steering.to_dict()
    options: dict[str, Any] = {"rewards": (), "num_particles": (steering.pop("num_particles", None),)}
    # Later ones override earlier ones: the suite's, the preset's, the solver's, the user's.
    options |= {"batch_size": ROWS, **find_suite(suite).defaults, **_preset_options(preset)}
    options |= {**_solver_options(typed), **typed}
    settings = steering | {name: options.pop(name) for name in tuple(options) if name not in _RUN_OPTIONS}
    return options, settings


def _steered(plain: RunSettings, method: str, search: SearchConfig, *, reward: str) -> RunSettings:
    batch_size = max(plain.batch_size, search.population(1).max_particles)
    return replace(plain, method=method, search=search, reward=reward, batch_size=batch_size)


_RUN_OPTIONS = {*(field.name for field in fields(RunSettings)), "rewards", "num_particles", "budget"}


def _refuse_unused(settings: Mapping[str, Any], searches: Sequence[str]) -> None:
    """Raise for a setting that neither a search nor FK steering has; presets give FK steering's to every search."""
    known = {name for method in {*searches, STEERED} for name in search_fields(method)}
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"{unknown[0]} is not a setting of {', '.join(searches) or UNSTEERED}.")


def _preset_options(preset: Preset | None) -> dict[str, Any]:
    if preset is None:
        return {}
    names = ("model", "num_steps", "scheduler", "num_samples")
    return {"rewards": (preset.reward,), **{name: getattr(preset, name) for name in names}}


def _solver_options(typed: Mapping[str, Any]) -> dict[str, Any]:
    """A solver's number of steps; if it has a guidance scale, None lets the pipeline apply it."""
    from fk_reward.pipelines.schedulers import resolve_solver

    solver = resolve_solver(typed.get("solver"))
    if solver is None:
        return {}
    guidance = {} if solver.guidance_scale is None else {"guidance_scale": None}
    return {"scheduler": "auto", "num_steps": solver.num_inference_steps, **guidance}


def describe_preset(name: str, preset: Preset, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a preset for the manifest: its settings, and what the user has set instead."""
    return {"name": name, **asdict(preset), "changed": dict(typed)}


@dataclass(frozen=True, kw_only=True)
class GenEvalRequest:
    """Request of a user to the benchmark.

    Attributes:
        out: folder of the runs; what is finished there is not made again.
        suite: name of the suite: official; geneval2, dpg-bench, genai-bench, unigenbench, t2i-compbench, questions:
            from copies of their files; shapes, shapes-geneval2, shapes-sign, ...: offline, with models of the package.
        stages: of `STAGES`, what to do: generate, judge, report.
        preset: settings of a paper: fk-paper or llava-reward-paper. What is typed goes before it.
        methods: `"unsteered"` and names of searches; none for unsteered, best of N and FK steering.
        typed: settings of the runs from the user, see `plan_runs`.
        heldout: rewards that only score.
        task_options: prompts and judge.
        skip_self_test: judge even where the judge fails on images that it should know.
        num_shown: prompts with images in the HTML page.
        about: written into the manifests without being compared: the command.

    Raises:
        ValueError: for an unknown stage, or no prompt to show.
    """

    out: Path
    suite: str = "official"
    stages: tuple[str, ...] = STAGES
    preset: str | None = None
    methods: tuple[str, ...] = ()
    typed: Mapping[str, Any] = field(default_factory=dict)
    heldout: tuple[str, ...] = ()
    task_options: TaskOptions = TaskOptions()
    skip_self_test: bool = False
    num_shown: int = 60
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise ValueError(f"--stage should be one of {', '.join(STAGES)}, got {unknown[0]!r}.")
        whole_number("--num-shown", self.num_shown, minimum=1)


def run_request(
    request: GenEvalRequest,
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
        raise ValueError(
            "--shard shares one stage: add --stage generate, or --stage judge when all images are there; when all "
            "parts are done, --stage judge --stage report without --shard puts them together."
        )
    share = find_share(shard, device, ray_workers)
    console = open_console(quiet=not share.leads)
    writes = written_stages(request.stages, request.out)
    task = find_suite(request.suite).task(request.task_options) if writes else None
    if "generate" in request.stages:
        _planned(request)  # before a folder is made
    with share.hold(request.out) if writes else nullcontext():
        if task is not None and "generate" in request.stages:
            watch(run_works(partial(bind_request, request, device, dtype), share=share), console=console)
        if task is not None and "judge" in request.stages:
            watch(_judge(request, task, share=share, device=device), console=console)
    if "report" in request.stages and share.leads:
        return write_report(request.out, num_shown=request.num_shown)
    return None


def bind_request(request: GenEvalRequest, device: str, dtype: torch.dtype, _writer: str = "") -> list[Work]:
    """Load what draws the images of a request.

    Args:
        request: what to do.
        device: of the model and the rewards.
        dtype: of the model.

    Raises:
        ValueError: settings that do not fit.
        OSError: missing files or models.
    """
    task = find_suite(request.suite).task(request.task_options)
    runs, about = _planned(request), dict(request.about)
    if request.preset is not None:
        about["preset"] = describe_preset(request.preset, find_preset(request.preset), request.typed)
    return [Work(task, bind_runs(runs, task, device=device, dtype=dtype), ImageStore(request.out, about=about))]


def _planned(request: GenEvalRequest) -> list[RunSettings]:
    preset = None if request.preset is None else find_preset(request.preset)
    return plan_runs(request.suite, methods=request.methods or METHODS, preset=preset, typed=request.typed)


def bind_runs(
    runs: Sequence[RunSettings], task: Task[Mapping[str, Any]], *, device: str, dtype: torch.dtype
) -> list[ImageSearch]:
    """Load the model of some runs, which they share, and their rewards.

    Args:
        runs: of one model, scheduler and preview.
        task: whose prompts are drawn.
        device: of the model and the rewards.
        dtype: of the model.

    Raises:
        ValueError: a reward of which lower is better.
    """
    # Rewards first: a name with a typing error is refused before a large model is fetched.
    rewards = {name: load_reward(name).to(device) for name in dict.fromkeys(run.reward for run in runs) if name}
    pipe = load_pipe(runs[0], device=device, dtype=dtype)
    for steers in rewards.values():
        pipe.reward = steers  # refuses one that cannot steer, before anything is drawn
    model, preview = describe_model(pipe, eta=noise_of_steps(pipe, runs[0])), describe_preview(pipe)
    methods = []
    for settings in runs:
        reward = rewards.get(settings.reward or "")
        manifest = make_manifest(settings, task=task, model=model, reward=reward, preview=preview)
        methods.append(ImageSearch(pipe, settings, reward=reward, manifest=manifest))
    return methods


def _judge(request: GenEvalRequest, task: Task[Mapping[str, Any]], *, share: Share, device: str) -> Iterator[Progress]:
    try:
        yield from judge_runs(request.out, task, share=share, device=device, self_test=not request.skip_self_test)
    except SelfTestError as error:
        raise ValueError(f"{error} Nothing was judged; add --skip-self-test to judge anyway.") from error
    yield from score_runs(request.out, request.heldout, task=task, share=share, device=device)
