"""`fk-reward scaling`: quality against cost of searches at several budgets, with the curve of best of N."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter

from fk_reward.cli.geneval import (
    BENCHMARK,
    BatchOptions,
    MethodOptions,
    ModelOptions,
    SampleOptions,
    SuiteOptions,
    typed_command,
    typed_settings,
)
from fk_reward.cli.options import (
    MEMORY,
    REWARD,
    SEARCH,
    OutOption,
    PlacementOptions,
    RayWorkersOption,
    ShardOption,
    TypedFields,
)
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.value_checks import parse_integers, parse_shard

_REQUEST = "fk_reward.benchmarks.scaling.runs:ScalingRequest"
DEFAULT_METHODS = ("fk", "recommended")
"""What is compared with best of N where no method is named."""

_BUDGETS_HELP = "Sample steps of an image, separated by commas; those of 4, 8 and 16 plain images if not given."
_STEPS_HELP = "Further numbers of steps of best of N, separated by commas: fewer steps buy more images."


class ScalingMethods(MethodOptions):
    """`--method NAME`, which may be repeated, its settings, and the budgets."""

    def sizes(self) -> dict[str, Any]:
        """Budgets in place of K."""
        return {
            "budgets": Annotated[str, Parameter(help=_BUDGETS_HELP, group=SEARCH)],
            "baseline_steps": Annotated[str, Parameter(help=_STEPS_HELP, group=SEARCH)],
        }


if TYPE_CHECKING:
    RequestOptions: TypeAlias = dict[str, Any]
    MethodFields: TypeAlias = dict[str, Any]
else:
    RequestOptions = Annotated[
        Any, TypedFields(_REQUEST, BENCHMARK, names=("suite", "stages", "heldout", "skip_self_test", "num_shown"))
    ]
    MethodFields = Annotated[Any, ScalingMethods()]


def scaling(  # noqa: PLR0913 (groups of options)
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
    """Draw searches at several budgets, and report quality against cost beside the curve of best of N.

    What is finished is never made again, so that an interrupted command is simply started again. Several processes
    share the work: accelerate launch -m fk_reward.cli scaling ...

    Args:
        out: Folder of the runs; an unfinished one is resumed.
        request: Suite, stages and report.
        suite_options: Prompts and judge.
        search: Methods, their settings and budgets.
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
    from fk_reward.benchmarks.report import show_report
    from fk_reward.benchmarks.scaling.runs import ScalingRequest, run_scaling

    typed = typed_settings(search, model, samples, rewards=reward, batch_size=batch_size, batch_sizes=batch_sizes)
    lists = (name for name in ("budgets", "baseline_steps") if name in typed)
    numbers: dict[str, Any] = {name: parse_integers(name, typed.pop(name)) for name in lists}
    methods = tuple(typed.pop("method", None) or DEFAULT_METHODS)
    asked = ScalingRequest(
        out=out,
        **request,
        **numbers,
        methods=methods,
        typed=typed,
        task_options=suite_options,
        about=typed_command(),
    )
    place = resolve_device(placement.device)
    part = None if shard is None else parse_shard(shard)
    dtype = resolve_dtype(placement.dtype, place)
    report = run_scaling(asked, device=place, dtype=dtype, shard=part, ray_workers=ray_workers)
    if report is not None:
        show_report(report)
