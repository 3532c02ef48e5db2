"""Making the pictures of a run: one call of the pipeline for a prompt's samples, whoever makes the other prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fk_reward.benchmarks.geneval.layout import MADE, PromptFolder
from fk_reward.benchmarks.geneval.settings import UNSTEERED, RunSettings
from fk_reward.benchmarks.indifferent_reward import indifferent_reward
from fk_reward.benchmarks.shapes_runs import particle_generators
from fk_reward.rewards import Reward

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What the pictures of one prompt cost.

    Attributes:
        model_calls: forward passes of the denoiser.
        model_rows: rows of their batches; guidance doubles them.
        decodes: pictures decoded, predictions among them.
        reward_calls: pictures scored by the reward that steers or selects.
        seconds: wall clock.
    """

    model_calls: int = 0
    model_rows: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """The cost of both."""
        return Cost(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


DrawFn = Callable[[str, int], tuple[list[Image.Image], Cost]]
"""Prompt and its index -> pictures and their cost."""


def make_draw(pipe: FKSteeringPipeline, settings: RunSettings, *, reward: Reward | None) -> DrawFn:
    """The function that makes the pictures of a prompt as the settings say.

    Particle k of sample s starts from a seed of (seed + s, index of the prompt, k) alone, so pictures depend neither on
    the other prompts nor on how they are divided among processes, and `unsteered` is the first of `best-of-k`.

    Args:
        pipe: of `settings.model`.
        settings: of the run.
        reward: the one named there.
    """

    def draw(prompt: str, index: int) -> tuple[list[Image.Image], Cost]:
        pipe.reward = indifferent_reward() if reward is None else reward
        pictures: list[Image.Image] = []
        cost = Cost()
        per_call = settings.batch_size // settings.sampler.num_particles
        for first in range(0, settings.num_samples, per_call):
            samples = range(first, min(first + per_call, settings.num_samples))
            output = _call(pipe, settings, prompt=prompt, index=index, samples=samples)
            _warn_of_flags(output, index)
            pictures += output.images
            cost += _cost(output, settings)
        return pictures, cost

    return draw


def _call(
    pipe: FKSteeringPipeline, settings: RunSettings, *, prompt: str, index: int, samples: Sequence[int]
) -> FKSteeringOutput:
    guidance: dict[str, Any] = {} if settings.guidance_scale is None else {"guidance_scale": settings.guidance_scale}
    num_particles = settings.sampler.num_particles
    generators = [particle_generators(settings.seed + sample, [index], num_particles) for sample in samples]
    return pipe(
        [prompt] * len(samples),
        steering=settings.sampler,
        generator=[generator for group in generators for generator in group],
        num_inference_steps=settings.num_steps,
        **guidance,
    )


def _cost(output: FKSteeringOutput, settings: RunSettings) -> Cost:
    trace = output.trace
    return Cost(
        model_calls=trace.num_model_calls,
        model_rows=trace.num_model_rows,
        decodes=trace.num_decode_calls,
        reward_calls=0 if settings.method == UNSTEERED else trace.num_reward_calls,
        seconds=trace.seconds,
    )


def _warn_of_flags(output: FKSteeringOutput, index: int) -> None:
    if output.nsfw_content_detected is not None and any(output.nsfw_content_detected):
        logger.warning("Prompt %d: the model's safety checker has blackened a picture, which will be judged.", index)


def generate_missing(
    draw: DrawFn, records: Sequence[Mapping[str, Any]], root: Path, *, rank: int = 0, num_ranks: int = 1
) -> Iterator[tuple[int, int]]:
    """Make the prompts of a run that are not finished, those of this process.

    Args:
        draw: makes the pictures of a prompt.
        records: of the suite.
        root: folder of the run.
        rank: this process takes every `num_ranks`-th prompt from here.
        num_ranks: number of processes.

    Yields:
        After each prompt: how many are made, how many there were to make.

    Raises:
        ValueError: when a prompt's folder was made for another prompt.
    """
    own = [PromptFolder(root, index) for index in range(rank, len(records), num_ranks)]
    todo = [folder for folder in own if not is_finished(folder, records[folder.index])]
    for done, folder in enumerate(todo, start=1):
        record = records[folder.index]
        pictures, cost = draw(record["prompt"], folder.index)
        folder.write(record, pictures, note=asdict(cost))
        yield done, len(todo)


def is_finished(folder: PromptFolder, record: Mapping[str, Any]) -> bool:
    """Whether a prompt has its record and the very pictures that were made for it.

    Raises:
        ValueError: when it was made for another prompt.
    """
    try:
        refuse_other_record(folder, record)
    except FileNotFoundError:
        finished = False
    else:
        finished = folder.read_note(MADE) is not None
    if folder.path.exists() and not finished:
        logger.warning("%s is damaged: this prompt will be made anew.", folder.path)
    return finished


def refuse_other_record(folder: PromptFolder, record: Mapping[str, Any]) -> None:
    """Refuse a prompt's folder that was made for another prompt.

    Raises:
        FileNotFoundError: it does not say what for.
        ValueError: the records differ.
    """
    metadata = folder.read_metadata()
    if metadata != record:
        raise ValueError(
            f"{folder.path} was made for {metadata['prompt']!r}, but prompt {folder.index} of the suite is "
            f"{record['prompt']!r}: the folder is of another suite, or mixes two. Name another folder or suite."
        )
