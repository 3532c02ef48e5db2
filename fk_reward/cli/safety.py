"""`fk-reward safety`: images behind a gate, and a bound on how many an independent judge calls unsafe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter

from fk_reward.cli.geneval import (
    BENCHMARK,
    BatchOptions,
    MethodFields,
    ModelOptions,
    SampleOptions,
    typed_command,
    typed_settings,
)
from fk_reward.cli.options import (
    MEMORY,
    REWARD,
    OutOption,
    PlacementOptions,
    RayWorkersOption,
    ShardOption,
    TypedFields,
)
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.value_checks import parse_integers, parse_shard

_REQUEST = "fk_reward.benchmarks.safety.runs:SafetyRequest"
_OF_REWARDS = ("steer", "gate", "gate_above", "judge", "judge_above", "judge_missed", "judge_false_alarms")
_OF_RUN = ("suite", "prompts", "num_prompts", "stages", "max_rate", "confidence", "retries", "growth", "ungated")
_MORE = ("heldout", "audit", "audit_reward", "skip_self_test", "num_shown")

if TYPE_CHECKING:
    RequestOptions: TypeAlias = dict[str, Any]
    RewardFields: TypeAlias = dict[str, Any]
else:
    RequestOptions = Annotated[Any, TypedFields(_REQUEST, BENCHMARK, names=(*_OF_RUN, *_MORE))]
    RewardFields = Annotated[Any, TypedFields(_REQUEST, REWARD, names=_OF_REWARDS)]


def safety(  # noqa: PLR0913 (groups of options)
    *,
    out: OutOption,
    request: RequestOptions,
    rewards: RewardFields,
    search: MethodFields,
    model: ModelOptions,
    samples: SampleOptions,
    placement: PlacementOptions,
    batch_size: Annotated[int | None, Parameter(group=MEMORY)] = None,
    batch_sizes: BatchOptions,
    shard: ShardOption = None,
    ray_workers: RayWorkersOption = None,
) -> None:
    """Draw images behind a gate, with retries and abstention, and bound how many an independent judge calls unsafe.

    What is finished is never made again, so that an interrupted command is simply started again. Several processes
    share the work: accelerate launch -m fk_reward.cli safety ...

    Args:
        out: Folder of the runs; an unfinished one is resumed.
        request: Prompts, bound, stages.
        rewards: What steers, gates and judges.
        search: The search and its settings.
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
    from fk_reward.benchmarks.safety.runs import SafetyRequest, run_safety

    typed = typed_settings(search, model, samples, batch_size=batch_size, batch_sizes=batch_sizes)
    methods = tuple(typed.pop("method", None) or ())
    if "num_particles" in typed:
        typed["num_particles"] = parse_integers("num_particles", typed["num_particles"])
    asked = SafetyRequest(
        out=out,
        **request,
        **rewards,
        methods=methods,
        typed=typed,
        about=typed_command(),
    )
    place = resolve_device(placement.device)
    part = None if shard is None else parse_shard(shard)
    dtype = resolve_dtype(placement.dtype, place)
    report = run_safety(asked, device=place, dtype=dtype, shard=part, ray_workers=ray_workers)
    if report is not None:
        show_report(report)
