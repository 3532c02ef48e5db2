"""Cost of steering itself: steered with a free reward against the stock pipeline with as many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor
from torch.utils.benchmark import timer

from fk_reward.benchmarks.report import Column, show_table, write_json
from fk_reward.benchmarks.timing import quartiles
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.output_folder import hold_folder
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline


COLUMNS = (
    Column("quantity"),
    Column("median", style="{:.4f}"),
    Column("median_low", "lower quartile", "{:.4f}"),
    Column("median_high", "upper quartile", "{:.4f}"),
)


@dataclass(frozen=True)
class Repetition:
    """Wall-clock seconds of one pair of runs, one right after the other.

    Attributes:
        stock: the wrapped pipeline alone, K images.
        steered: the same K images, steered.
        decode: of `steered`, spent on decoding predicted images at the scoring steps.
        reward: of `steered`, spent in the reward.
    """

    stock: float
    steered: float
    decode: float
    reward: float

    @property
    def total_ratio(self) -> float:
        """Steered over stock, everything included."""
        return self.steered / self.stock

    @property
    def steering_ratio(self) -> float:
        """Steered less decoding and reward, over stock: 1.05 is five per cent for steering itself."""
        return (self.steered - self.decode - self.reward) / self.stock


def mean_pixel(images: Tensor, prompts: list[str]) -> Tensor:  # noqa: ARG001 (the signature of all rewards)
    """Score at no cost, yet differently for each image, so that particles are resampled."""
    return images.mean(dim=(1, 2, 3))


def widen_unet(pipe: FKSteeringPipeline, factor: int) -> None:
    """Replace the UNet by a random one of `factor` times the channels: a bigger model of the same interface."""
    config = pipe.unet.config
    channels = [factor * number for number in config["block_out_channels"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config, block_out_channels=channels)
    pipe.unet = unet.to(pipe.device, pipe.unet.dtype).eval()


def measure(
    pipe: FKSteeringPipeline, *, prompt: str, num_particles: int, num_steps: int, num_repetitions: int
) -> list[Repetition]:
    """Time stock and steered calls in turn, after one call of each to warm up.

    Every scoring step resamples (`ess_threshold=1.0`), so that all the work of steering is in the measure.

    Args:
        pipe: with a free reward.
        prompt: to draw.
        num_particles: K, for both.
        num_steps: scheduler steps.
        num_repetitions: pairs of runs; which one comes first changes from pair to pair.
    """
    arguments: dict[str, Any] = {"num_inference_steps": num_steps, "output_type": "pt"}
    config = FKSteeringConfig(num_particles=num_particles, ess_threshold=1.0)

    def generator() -> Generator:
        return Generator(pipe.device).manual_seed(0)

    def stock() -> Any:
        return pipe.pipe(prompt, num_images_per_prompt=num_particles, eta=1.0, generator=generator(), **arguments)

    def steered() -> Any:
        return pipe(prompt, steering=config, num_images_per_prompt=num_particles, generator=generator(), **arguments)

    stock(), steered()
    return [_pair(stock, steered, steered_first=bool(i % 2)) for i in range(num_repetitions)]


def _pair(stock: Callable[[], Any], steered: Callable[[], Any], *, steered_first: bool) -> Repetition:
    if steered_first:
        (steered_seconds, output), (stock_seconds, _) = _timed(steered), _timed(stock)
    else:
        (stock_seconds, _), (steered_seconds, output) = _timed(stock), _timed(steered)
    steps = output.trace.steps
    return Repetition(
        stock=stock_seconds,
        steered=steered_seconds,
        decode=sum(step.decode_seconds for step in steps),
        reward=sum(step.reward_seconds for step in steps),
    )


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = timer()
    output = run()
    return timer() - started, output


def summarize(repetitions: Sequence[Repetition]) -> list[dict[str, Any]]:
    """Median and quartiles of the ratios of each pair, and of the seconds.

    Example:
        >>> rows = summarize([Repetition(stock=1.0, steered=1.3, decode=0.2, reward=0.1)] * 3)
        >>> rows[0]["quantity"], rows[0]["median"]
        ('steering itself / stock', 1.0)
    """
    quantities: dict[str, Callable[[Repetition], float]] = {
        "steering itself / stock": lambda r: r.steering_ratio,
        "steered / stock": lambda r: r.total_ratio,
        "stock seconds": lambda r: r.stock,
        "steered seconds": lambda r: r.steered,
        "decode seconds": lambda r: r.decode,
        "reward seconds": lambda r: r.reward,
    }
    return [
        {"quantity": name, **quartiles("median", [quantity(r) for r in repetitions])}
        for name, quantity in quantities.items()
    ]


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    model: str = "shapes-sd",
    unet_width: int = 1,
    prompt: str = "a photo of a red circle",
    num_particles: int = 4,
    steps: int = 50,
    num_repetitions: int = 15,
    device: str = "cpu",
    out: OutOption = Path("results/overhead"),
) -> None:
    """Time the steered pipeline and the stock one in turn; print medians and write `overhead.json`.

    Args:
        model: Model, by name, hub id or folder.
        unet_width: Multiply the UNet's channels; above 1 it is random.
        prompt: What to draw.
        num_particles: K.
        steps: Scheduler steps.
        num_repetitions: Pairs of runs, at least 2.
        device: Device: auto, cpu or cuda.
        out: Folder of the results.
    """
    whole_number("--unet-width", unet_width, minimum=1)
    whole_number("--num-particles", num_particles, minimum=2)
    whole_number("--steps", steps, minimum=2)
    whole_number("--num-repetitions", num_repetitions, minimum=2)
    sizes = {"num_particles": num_particles, "num_steps": steps, "num_repetitions": num_repetitions}
    with hold_folder(out):
        pipe = _load(model, unet_width=unet_width, device=device)
        repetitions = measure(pipe, prompt=prompt, **sizes)
        rows = summarize(repetitions)
        millions = sum(parameter.numel() for parameter in pipe.unet.parameters()) / 1e6
        title = f"{model}, UNet of {millions:.1f} M parameters, K = {num_particles}, {steps} steps, {pipe.device}"
        show_table(title, COLUMNS, rows)
        settings = {"model": model, "unet_millions": millions, "device": str(pipe.device)}
        settings |= {"threads": torch.get_num_threads(), **sizes}
        content = {"settings": settings, "rows": rows, "repetitions": [asdict(r) for r in repetitions]}
        say(f"Results: {write_json(out / 'overhead.json', content)}")


def _load(model: str, *, unet_width: int, device: str) -> FKSteeringPipeline:
    from fk_reward.devices import resolve_device  # noqa: PLC0415 (only the command has a device to name)
    from fk_reward.pipelines import FKSteeringPipeline  # noqa: PLC0415 (slow to import)

    place = resolve_device(device)
    pipe = FKSteeringPipeline.from_pretrained(model, reward=mean_pixel).to(place)
    if "unet" not in pipe.components:
        raise ValueError(f"{model} has no UNet ({type(pipe.pipe).__name__}); this benchmark counts and widens one.")
    pipe.set_progress_bar_config(disable=True)
    if unet_width > 1:
        widen_unet(pipe, unet_width)
    return pipe


if __name__ == "__main__":
    run_script(main)
