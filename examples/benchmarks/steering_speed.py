"""Speed of a steered call by settings: solvers, previews, compilation and batches, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Generator, Tensor
from torch.nn import functional

from examples.benchmarks.overhead import mean_pixel
from examples.benchmarks.reward_speed import OUT_OF_MEMORY
from fk_reward.benchmarks.report import RANGE, Column, markdown_table, show_table, write_json
from fk_reward.benchmarks.rewards.costs import PROMPT
from fk_reward.benchmarks.timing import quartiles, seconds_of
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.durable_files import write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import hold_folder
from fk_reward.pipelines.loading import default_guidance
from fk_reward.planning.check import peak_memory
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline


_FEW_CROPS = 4

SetUp: TypeAlias = Callable[["FKSteeringPipeline"], AbstractContextManager[Any]]
"""Changes a pipeline for as long as the context lasts; outside of what is timed."""


@dataclass(frozen=True)
class Variant:
    """A way to make K images.

    Attributes:
        name: in the table.
        call: keywords of the pipeline's call.
        set_up: changes the pipeline beforehand.
        steered: whether the steered pipeline is called, not the one that it wraps.
        available: whether a pipeline can do it.
        missing: what this machine lacks for it, for the table; empty if nothing.
    """

    name: str
    call: Mapping[str, Any] = field(default_factory=dict)
    set_up: SetUp = nullcontext
    steered: bool = True
    available: Callable[[FKSteeringPipeline], bool] = lambda pipe: True
    missing: Callable[[FKSteeringPipeline], str] = lambda pipe: ""


def thumbnails(latents: Tensor) -> Tensor:
    """Decode at no cost: the first three channels of the latents, (B, C, h, w) to (B, 3, h, w) in [0, 1].

    Example:
        >>> thumbnails(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    return functional.sigmoid(latents[:, :3].float())


def with_setting(name: str, value: Any) -> SetUp:
    """Make a set-up that sets an attribute of the pipeline, and restores it."""

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
"""The mean pixel instead of the reward."""


@contextmanager
def free_reward_and_decoder(pipe: FKSteeringPipeline) -> Iterator[None]:
    """The mean pixel of `thumbnails`: only the sampler is left."""
    with with_setting("preview", thumbnails)(pipe), free_reward(pipe):
        yield


@contextmanager
def few_crops(pipe: FKSteeringPipeline) -> Iterator[None]:
    """Four crops for the HD transform of Phi-3.5-vision instead of sixteen."""
    backbone = pipe.reward.model.backbone  # type: ignore[attr-defined]
    transform = backbone.hd_transform
    backbone.hd_transform = replace(transform, num_crops=_FEW_CROPS)
    try:
        yield
    finally:
        backbone.hd_transform = transform


def sped_up(**options: bool) -> SetUp:
    """Make a set-up that calls `speed_up` with these options; the first call of the first context compiles."""

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
    pipe.to(pipe.device)  # brings the reward back to the pipeline's GPU


def compiler_missing(pipe: FKSteeringPipeline) -> str:
    """Why `torch.compile` does not work on the devices of this pipeline; empty if it does."""
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
"""K images of the wrapped pipeline, neither previewed nor scored."""

STEERED = Variant("steered")
"""K particles with the decoder of the pipeline and the reward, the defaults."""

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
"""The compared variants, in the order of the table. To add an option of the pipeline's call, add a row."""


COMPILED = Variant("steered, compiled", set_up=sped_up(compile=True), missing=compiler_missing)
"""The steered call with the blocks of denoiser and reward compiled."""


COLUMNS = (
    Column("variant"),
    Column("seconds", "s an image", "{:.3g} [{:.3g}, {:.3g}]", ("seconds_low", "seconds_high")),
    Column("to_stock", "/ stock", RANGE, ("to_stock_low", "to_stock_high")),
    Column("to_steered", "/ steered", RANGE, ("to_steered_low", "to_steered_high")),
    Column("peak_gb", "peak GB", "{:.2f}"),
    Column("note"),
)


@dataclass(frozen=True, kw_only=True)
class SteeringSpeedSettings:
    """What to measure.

    Attributes:
        model: name, hub id or folder.
        reward: registered name.
        random_weights: model and reward at their full size with random weights; no file is read.
        num_particles: K, for all variants.
        steps: scheduler steps.
        num_repetitions: rounds, at least 2.
        device: "cpu" or "cuda".
        dtype: of the pipeline, the name of a floating dtype.
        compile: whether compiled blocks are among the variants.
        seed: of random weights and of the images.
    """

    model: str = "shapes-sd"
    reward: str = DEFAULT_EMBEDDED_REWARD
    random_weights: bool = False
    num_particles: int = 4
    steps: int = 50
    num_repetitions: int = 7
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    seed: int = 0


def make_pipeline(settings: SteeringSpeedSettings) -> FKSteeringPipeline:
    """The pipeline with its reward on the device.

    Raises:
        ValueError: with `random_weights`, a model or a reward of unknown size.
    """
    from fk_reward.planning.full_size_pipelines import FULL_SIZE_PIPELINES  # noqa: PLC0415 (slow to import)
    from fk_reward.planning.planned_models import steered_pipeline  # noqa: PLC0415

    if settings.random_weights and settings.model not in FULL_SIZE_PIPELINES:
        known = ", ".join(name for name in FULL_SIZE_PIPELINES if "/" not in name)
        raise ValueError(f"--random-weights knows the sizes of {known}; got {settings.model!r}.")
    return steered_pipeline(
        settings.model,
        reward=settings.reward,
        device=settings.device,
        dtype=getattr(torch, settings.dtype),
        random_weights=settings.random_weights,
        seed=settings.seed,
    )


def variants_for(pipe: FKSteeringPipeline, settings: SteeringSpeedSettings) -> list[Variant]:
    """Those of `VARIANTS` that the pipeline can do, and the compiled one on request."""
    extra = (COMPILED,) if settings.compile else ()
    return [variant for variant in (*VARIANTS, *extra) if variant.available(pipe)]


def measure(
    pipe: FKSteeringPipeline, variants: Sequence[Variant], settings: SteeringSpeedSettings
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Time all variants in each round, one right after the other and in reversed order every other round.

    A first call of each warms up and measures the peak of memory. Every scoring step resamples, so that all the work of
    steering is measured. A variant that does not fit into memory is left out.

    Returns:
        Seconds of each round, and the peak in bytes (None on a CPU), by the name of the variant.
    """
    device = torch.device(settings.device)
    peaks: dict[str, int | None] = {}
    seconds: dict[str, list[float]] = {}
    for variant in variants:
        try:
            with variant.set_up(pipe):
                peaks[variant.name] = peak_memory(_run(pipe, variant, settings), device)
            seconds[variant.name] = []
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    fitting = [variant for variant in variants if variant.name in seconds]
    for index in range(settings.num_repetitions):
        for variant in fitting if index % 2 == 0 else fitting[::-1]:
            with variant.set_up(pipe):
                seconds[variant.name].append(seconds_of(_run(pipe, variant, settings)))
    return seconds, peaks


def _run(pipe: FKSteeringPipeline, variant: Variant, settings: SteeringSpeedSettings) -> Callable[[], Any]:
    """A call that makes K images."""
    arguments: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "num_images_per_prompt": settings.num_particles,
        "output_type": "pt",
        **default_guidance(settings.model, None),
        **variant.call,
    }
    if variant.steered:
        arguments["steering"] = FKSteeringConfig(num_particles=settings.num_particles, ess_threshold=1.0)

    def run() -> None:
        generator = Generator(pipe.device).manual_seed(settings.seed)
        if variant.steered:
            pipe(PROMPT, generator=generator, **arguments)
        else:
            pipe.pipe(PROMPT, generator=generator, **arguments)

    return run


def summarize(
    seconds: dict[str, list[float]],
    peaks: dict[str, int | None],
    *,
    names: Sequence[str],
    num_particles: int,
    missing: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """A row for each variant: median and quartiles of the seconds per image and of the ratios within a round.

    A variant without seconds gets a note: what is `missing` for it, or that memory ran out.

    Example:
        >>> rows = summarize({"stock": [1.0, 1.0], "steered": [2.0, 3.0]}, {}, names=["steered"], num_particles=4)
        >>> rows[0]["seconds"], rows[0]["to_stock"], rows[0]["to_steered"]
        (0.625, 2.5, 1.0)
    """
    notes = {name: (missing or {}).get(name, OUT_OF_MEMORY) for name in names if name not in seconds}
    return [
        {"variant": name, "note": notes[name]} if name in notes else _row(name, seconds, peaks, num_particles)
        for name in names
    ]


def _row(
    name: str, seconds: dict[str, list[float]], peaks: dict[str, int | None], num_particles: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": name, "note": "", "peak_gb": None}
    if peaks.get(name) is not None:
        row["peak_gb"] = peaks[name] / 1e9  # type: ignore[operator]
    row |= quartiles("seconds", [value / num_particles for value in seconds[name]])
    for other, key in ((STOCK.name, "to_stock"), (STEERED.name, "to_steered")):
        if other in seconds:
            row |= quartiles(key, [a / b for a, b in zip(seconds[name], seconds[other], strict=True)])
    return row


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    model: str = "shapes-sd",
    reward: str = DEFAULT_EMBEDDED_REWARD,
    random_weights: bool = False,
    num_particles: int = 4,
    steps: int = 50,
    num_repetitions: int = 7,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    seed: int = 0,
    out: OutOption = Path("results/steering-speed"),
) -> None:
    """Time the steered pipeline with each option on and off, in turn; write `steering_speed.json` and `.md`.

    Args:
        model: Model, by name, hub id or folder.
        reward: Reward, by name.
        random_weights: sd-2.1, sd-2.1-base or sdxl and the reward at full size, no files.
        num_particles: K.
        steps: Scheduler steps.
        num_repetitions: Rounds, at least 2.
        device: Device: auto, cpu or cuda.
        dtype: Floating type of the pipeline: auto, float32, float16 or bfloat16.
        compile: Time compiled blocks, too.
        seed: Seed of random weights and of the images.
        out: Folder of the results.
    """
    whole_number("--num-particles", num_particles, minimum=2)
    whole_number("--steps", steps, minimum=2)
    whole_number("--num-repetitions", num_repetitions, minimum=2)
    place = resolve_device(device)
    settings = SteeringSpeedSettings(
        model=model,
        reward=reward,
        random_weights=random_weights,
        num_particles=num_particles,
        steps=steps,
        num_repetitions=num_repetitions,
        device=place,
        dtype=str(resolve_dtype(dtype, place)).removeprefix("torch."),
        compile=compile,
        seed=seed,
    )
    with hold_folder(out):
        _report(settings, make_pipeline(settings), out)


def _report(settings: SteeringSpeedSettings, pipe: FKSteeringPipeline, out: Path) -> None:
    variants = variants_for(pipe, settings)
    missing = {variant.name: why for variant in variants if (why := variant.missing(pipe))}
    seconds, peaks = measure(pipe, [variant for variant in variants if variant.name not in missing], settings)
    names = [variant.name for variant in variants]
    rows = summarize(seconds, peaks, names=names, num_particles=settings.num_particles, missing=missing)
    machine = torch.cuda.get_device_name() if settings.device == "cuda" else settings.device
    environment = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
    content = {"settings": asdict(settings), "environment": environment, "rows": rows, "rounds": seconds}
    path = write_json(out / "steering_speed.json", content)
    write_whole(path.with_suffix(".md"), markdown_table(COLUMNS, rows) + "\n")
    title = f"{settings.model} with {settings.reward}, K = {settings.num_particles}, {settings.steps} steps, {machine}"
    show_table(title, COLUMNS, rows)
    say(f"Results: {path}")


if __name__ == "__main__":
    run_script(main)
