"""`fk-reward geneval`, or `benchmark`: make, judge and report the images of GenEval or of another suite."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Group, Parameter

from fk_reward.cli.options import (
    MEMORY,
    MODEL,
    REWARD,
    SEARCH,
    Build,
    FieldOptions,
    OutOption,
    PlacementOptions,
    RayWorkersOption,
    ShardOption,
    TypedFields,
    named_searches,
    optional,
    search_parameters,
)
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.value_checks import parse_integers, parse_shard

BENCHMARK = Group("Benchmark", sort_key=0)
_RUNS = "fk_reward.benchmarks.geneval.runs:GenEvalRequest"
_SETTINGS = "fk_reward.benchmarks.drawing:RunSettings"
_METHOD_HELP = "unsteered, best-of-n, fk or another search, whose settings are then shown here; may be repeated."
_SIZES_HELP = "K, particles of one prompt; several values are separated by commas. That of the search if not given."
_BUDGET_HELP = "Sample steps of an image, at most: sets the sizes of every search, so that all cost the same."


@dataclass(frozen=True)
class MethodOptions:
    """`--method NAME`, which may be repeated, and the settings of all searches that are named."""

    def expand(self, tokens: Sequence[str]) -> tuple[list[inspect.Parameter], Build]:
        """The names, K, and one keyword for each field of the searches that the command line names.

        Raises:
            ValueError: there is no such method; the message lists the known ones.
            SearchLoadError: it is registered and cannot be imported.
        """
        from fk_reward.benchmarks.drawing import METHODS, UNSTEERED, check_method, make_search

        methods = tuple(dict.fromkeys(named_searches(tokens))) or METHODS
        named = Annotated[list[str], Parameter(help=_METHOD_HELP, alias="--search", group=SEARCH)]
        hints = {"method": named, **self.sizes()}
        made = {name: _keyword(name, hint) for name, hint in hints.items()}
        for method in methods:
            check_method(method)
            for parameter in search_parameters(method) if method != UNSTEERED else ():
                made.setdefault(parameter.name, parameter)

        def build(typed: Mapping[str, Any]) -> dict[str, Any]:
            settings = {name: value for name, value in typed.items() if name not in hints}
            for method in methods:
                # A TypeError of a value is a mistake here, and would look like a defect later on; ranges are checked
                # with the values of preset and suite.
                with suppress(ValueError):
                    make_search(method, **settings)
            return dict(typed)

        return list(made.values()), build

    def sizes(self) -> dict[str, Any]:
        """What sets the sizes of the searches: option -> its type."""
        return {
            "num_particles": Annotated[str, Parameter(help=_SIZES_HELP, alias="-k", group=SEARCH)],
            "budget": Annotated[int, Parameter(help=_BUDGET_HELP, group=SEARCH)],
        }


def _keyword(name: str, hint: Any) -> inspect.Parameter:
    return optional(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint))


if TYPE_CHECKING:
    from fk_reward.benchmarks.task import TaskOptions

    RequestOptions: TypeAlias = dict[str, Any]
    ModelOptions: TypeAlias = dict[str, Any]
    SampleOptions: TypeAlias = dict[str, Any]
    MethodFields: TypeAlias = dict[str, Any]
    BatchOptions: TypeAlias = dict[str, Any]
    SuiteOptions: TypeAlias = TaskOptions
else:
    RequestOptions = Annotated[
        Any,
        TypedFields(_RUNS, BENCHMARK, names=("suite", "stages", "preset", "heldout", "skip_self_test", "num_shown")),
    ]
    ModelOptions = Annotated[
        Any,
        TypedFields(
            _SETTINGS,
            MODEL,
            names=(
                "model",
                "revision",
                "scheduler",
                "solver",
                "num_steps",
                "guidance_scale",
                "eta",
                "preview",
                "lookahead",
            ),
        ),
    ]
    SampleOptions = Annotated[Any, TypedFields(_SETTINGS, BENCHMARK, names=("num_samples", "seed", "diversity"))]
    MethodFields = Annotated[Any, MethodOptions()]
    BatchOptions = Annotated[Any, TypedFields("fk_reward.pipelines.batch_sizes:BatchSizes", MEMORY)]
    SuiteOptions = Annotated[Any, FieldOptions("fk_reward.benchmarks.task:TaskOptions", BENCHMARK)]


def typed_settings(
    *groups: Mapping[str, Any],
    rewards: Sequence[str] | None = None,
    batch_size: int | None = None,
    batch_sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """What was typed of how images are drawn, as one; what was not is left to the presets and defaults.

    Args:
        groups: options of search, model and samples.
        rewards: that steer and select.
        batch_size: particles in one call.
        batch_sizes: fields of a `BatchSizes`.
    """
    from fk_reward.pipelines.batch_sizes import BatchSizes

    more: dict[str, Any] = {"rewards": tuple(rewards or ()) or None, "batch_size": batch_size}
    more["batch_sizes"] = BatchSizes(**batch_sizes) if batch_sizes else None
    typed = {name: value for group in groups for name, value in group.items()}
    return typed | {name: value for name, value in more.items() if value is not None}


def typed_command() -> dict[str, str]:
    """The command line for the record of a run, without the passwords of its endpoints."""
    from fk_reward.rewards.vlm_judge.endpoint import redact_text

    return {"command": redact_text(" ".join(["fk-reward", *sys.argv[1:]]))}


def geneval(  # noqa: PLR0913 (groups of options)
    *,
    out: OutOption,
    request: RequestOptions,
    suite_options: SuiteOptions,
    search: MethodFields,
    reward: Annotated[list[str] | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    model: ModelOptions,
    samples: SampleOptions,
    placement: PlacementOptions,
    batch_size: Annotated[int | None, Parameter(group=MEMORY)] = None,
    batch_sizes: BatchOptions,
    shard: ShardOption = None,
    ray_workers: RayWorkersOption = None,
) -> None:
    """Run a benchmark of images, GenEval or another suite: unsteered, best of K and steered images, judged, compared.

    What is finished is never made again, so that an interrupted command is simply started again. Several processes
    share the work: accelerate launch -m fk_reward.cli geneval ...

    Args:
        out: Folder of the runs; an unfinished one is resumed.
        request: Suite, stages and report.
        suite_options: Prompts and judge.
        search: Methods and their settings.
        reward: Reward that steers and selects; may be repeated. The embedded one for shapes if not given.
        model: Model and trajectory.
        samples: Images of each prompt.
        placement: Device and floating type.
        batch_size: Particles in one call, the samples of a prompt together; 16 if not given.
        batch_sizes: How much is run at once.
        shard: With --stage generate or judge, i/n: this process takes every n-th prompt; as accelerate launched it if
            not given.
        ray_workers: So many Ray actors draw, each with a GPU unless the device is the CPU; this process if not given.
    """
    from fk_reward.benchmarks.geneval.runs import GenEvalRequest, run_request
    from fk_reward.benchmarks.report import show_report

    typed = typed_settings(search, model, samples, rewards=reward, batch_size=batch_size, batch_sizes=batch_sizes)
    methods = tuple(typed.pop("method", None) or ())
    if "num_particles" in typed:
        typed["num_particles"] = parse_integers("num_particles", typed["num_particles"])
    asked = GenEvalRequest(
        out=out,
        **request,
        methods=methods,
        typed=typed,
        task_options=suite_options,
        about=typed_command(),
    )
    place = resolve_device(placement.device)
    part = None if shard is None else parse_shard(shard)
    dtype = resolve_dtype(placement.dtype, place)
    report = run_request(asked, device=place, dtype=dtype, shard=part, ray_workers=ray_workers)
    if report is not None:
        show_report(report)
