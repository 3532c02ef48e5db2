"""Ways to make the same pictures, whose time and memory are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from fk_reward.benchmarks.overhead import mean_pixel

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline

_FEW_CROPS = 4

SetUp: TypeAlias = Callable[["FKSteeringPipeline"], AbstractContextManager[Any]]
"""Changes a pipeline for as long as the context lasts; outside of what is timed."""


@dataclass(frozen=True)
class Variant:
    """A way to make K pictures.

    Attributes:
        name: in the table.
        call: keywords of the pipeline's call.
        set_up: what is changed beforehand.
        steered: whether the steered pipeline is called, not the one that it wraps.
        available: whether a pipeline can do it.
        missing: what is not at hand here, for the table; empty where everything is.
    """

    name: str
    call: Mapping[str, Any] = field(default_factory=dict)
    set_up: SetUp = nullcontext
    steered: bool = True
    available: Callable[[FKSteeringPipeline], bool] = lambda pipe: True
    missing: Callable[[FKSteeringPipeline], str] = lambda pipe: ""


def thumbnails(latents: Tensor) -> Tensor:
    """A decoder that costs nothing: the first three channels of the latents, (B, C, h, w) to (B, 3, h, w) in [0, 1].

    Example:
        >>> thumbnails(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    return functional.sigmoid(latents[:, :3].float())


def with_setting(name: str, value: Any) -> SetUp:
    """A set-up that writes an attribute of the pipeline, and puts back what was there."""

    @contextmanager
    def set_up(pipe: FKSteeringPipeline) -> Iterator[None]:
        before = getattr(pipe, name)
        setattr(pipe, name, value)
        try:
            yield
        finally:
            setattr(pipe, name, before)

    return set_up


free_reward = with_setting("reward", mean_pixel)
"""The mean pixel in place of the reward."""


@contextmanager
def free_reward_and_decoder(pipe: FKSteeringPipeline) -> Iterator[None]:
    """The mean pixel of `thumbnails`: what is left is the sampler."""
    with with_setting("preview", thumbnails)(pipe), free_reward(pipe):
        yield


@contextmanager
def few_crops(pipe: FKSteeringPipeline) -> Iterator[None]:
    """Four crops for the HD transform of Phi-3.5-vision, in place of sixteen."""
    backbone = pipe.reward.model.backbone  # type: ignore[attr-defined]
    transform = backbone.hd_transform
    backbone.hd_transform = replace(transform, num_crops=_FEW_CROPS)
    try:
        yield
    finally:
        backbone.hd_transform = transform


def sped_up(**options: bool) -> SetUp:
    """A set-up that calls `speed_up` with these options; compiling is in the first call of the first context."""

    @contextmanager
    def set_up(pipe: FKSteeringPipeline) -> Iterator[None]:
        from fk_reward.pipelines import speed_up  # noqa: PLC0415 (slow to import)

        speed_up(pipe, **options)
        try:
            yield
        finally:
            speed_up(pipe, **dict.fromkeys(options, False))

    return set_up


@contextmanager
def reward_on_another_gpu(pipe: FKSteeringPipeline) -> Iterator[None]:
    """The reward on the second GPU, or on the first where the pipeline is on another."""
    first, second = (torch.device("cuda", index) for index in (0, 1))
    with with_setting("reward_device", second if (pipe.device.index or 0) == 0 else first)(pipe):
        yield
    pipe.to(pipe.device)


def compiler_missing(pipe: FKSteeringPipeline) -> str:
    """Why `torch.compile` does not work where this pipeline is; nothing where it does."""
    from fk_reward.pipelines.acceleration import Compilation, check_compiler, devices_of  # noqa: PLC0415 (slow to import)

    try:
        check_compiler(Compilation(), devices_of(pipe))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _has_many_crops(pipe: FKSteeringPipeline) -> bool:
    backbone = getattr(getattr(pipe.reward, "model", None), "backbone", None)
    transform = getattr(backbone, "hd_transform", None)
    return transform is not None and transform.num_crops > _FEW_CROPS


def _has_two_gpus(pipe: FKSteeringPipeline) -> bool:
    return pipe.device.type == "cuda" and torch.cuda.device_count() > 1


STOCK = Variant("stock", steered=False)
"""K pictures of the wrapped pipeline, neither decoded under way nor scored."""

STEERED = Variant("steered")
"""K particles with the decoder of the pipeline and the reward, as a user gets them."""

VARIANTS: tuple[Variant, ...] = (
    STOCK,
    Variant("steered, free reward and decoder", set_up=free_reward_and_decoder),
    Variant("steered, free reward", set_up=free_reward),
    STEERED,
    Variant("steered, 4 crops", set_up=few_crops, available=_has_many_crops),
    Variant("steered, one particle at a time", call={"particle_batch_size": 1}),
    Variant("steered, decoded and scored one at a time", call={"decode_batch_size": 1, "reward_batch_size": 1}),
    Variant("steered, preview vae/2", set_up=with_setting("preview", "vae/2")),
    Variant(
        "steered, 20 steps of SDE-DPM-Solver++",
        call={"num_inference_steps": 20},
        set_up=with_setting("solver", "sde-dpmsolver++-20"),
    ),
    Variant("steered, channels-last", set_up=sped_up(channels_last=True)),
    Variant(
        "steered, reward on another GPU, decoded one at a time",
        call={"decode_batch_size": 1},
        set_up=reward_on_another_gpu,
        available=_has_two_gpus,
    ),
)
"""What is compared, in the order of the table. Another option of the pipeline's call is one more row."""


COMPILED = Variant("steered, compiled", set_up=sped_up(compile=True), missing=compiler_missing)
"""The steered call with the blocks of denoiser and reward compiled."""
