"""Images by caching schedules: what a reward says of them, and how they compare with everything computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fk_reward.benchmarks.cache_settings import CachedDrawing
from fk_reward.benchmarks.drawing import describe_model, particle_generators
from fk_reward.benchmarks.report import CHANGE, RANGE, interval_text
from fk_reward.benchmarks.statistics import Ends, Outcome, compare, estimate
from fk_reward.benchmarks.store import weights_digest
from fk_reward.benchmarks.task import Judge
from fk_reward.pipelines import FKSteeringPipeline
from fk_reward.pipelines.cache_schedule import CacheSchedule
from fk_reward.pipelines.caching import cache_schedule
from fk_reward.pipelines.loading import call_arguments
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.planning.cache_costs import CacheCosts, count_cache_costs
from fk_reward.rewards import load_reward
from fk_reward.search import BestOfN, SearchConfig

UNCACHED = "everything computed"
"""Name of the method that the others are compared with."""


class CachedImages:
    """A pipeline that draws the same starts by different schedules.

    Args:
        pipe: with its reward and scheduler.
        drawing: what is drawn.

    Attributes:
        pipe: the pipeline.
        arguments: of its calls.
    """

    def __init__(self, pipe: FKSteeringPipeline, drawing: CachedDrawing) -> None:
        self.pipe, self._drawing = pipe, drawing
        size = {"height": drawing.height, "width": drawing.width}
        steps, guidance = drawing.typed_steps, drawing.guidance_scale
        self.arguments = call_arguments(pipe, drawing.model, steps=steps, guidance_scale=guidance, size=size)
        self.arguments |= {} if drawing.eta is None else {"eta": drawing.eta}

    @classmethod
    def load(cls, drawing: CachedDrawing, *, device: str, dtype: torch.dtype) -> CachedImages:
        """Load model and reward.

        Raises:
            ValueError: an unknown name.
            OSError: a model or a reward that cannot be found or fetched.
        """
        reward = load_reward(drawing.reward).to(device)  # first: a misspelt name should not cost a large model
        pipe = FKSteeringPipeline.from_pretrained(drawing.model, reward=reward, torch_dtype=dtype).to(device)
        pipe.set_progress_bar_config(disable=True)
        pipe.solver = resolve_solver(drawing.solver)
        return cls(pipe, drawing)

    def describe(self) -> dict[str, Any]:
        """What the images and rewards depend on, as JSON."""
        return {
            **asdict(self._drawing),
            "arguments": dict(self.arguments),
            "described": describe_model(self.pipe, eta=self._drawing.eta),
            "reward_weights": weights_digest([self.pipe.reward]),
        }

    def costs(self) -> CacheCosts:
        """Operations of a step of this drawing, and of the parts that can be cached."""
        names = ("guidance_scale", "height", "width", "max_sequence_length")
        return count_cache_costs(
            self.pipe.pipe, **{name: self.arguments[name] for name in names if name in self.arguments}
        )

    def mean_reward(self, schedule: CacheSchedule | None, prompts: Sequence[str]) -> float:
        """Mean reward over prompts and images: a fitness."""
        rewards = self.draw(schedule, prompts)[1]
        return sum(map(sum, rewards)) / sum(map(len, rewards))

    def draw(
        self, schedule: CacheSchedule | None, prompts: Sequence[str], *, search: SearchConfig | None = None
    ) -> tuple[list[list[Any]], list[list[float]]]:
        """Draw images of each prompt by a schedule.

        Args:
            schedule: None to compute everything.
            prompts: P texts.
            search: who goes on; every image if not given.

        Returns:
            Images and rewards of each prompt, in the order of their seeds where nothing is searched, else best first.
        """
        number, size = self._drawing.num_images, self._drawing.batch_prompts
        images: list[list[Any]] = []
        rewards: list[list[float]] = []
        with cache_schedule(self.pipe, schedule):
            for first in range(0, len(prompts), size):
                part = list(prompts[first : first + size])
                places = range(first, first + len(part))
                config = BestOfN(num_particles=number) if search is None else search
                generators = particle_generators(self._drawing.seed, places, config.num_particles)
                out = self.pipe(
                    part, search=config, num_images_per_prompt=number, generator=generators, **self.arguments
                )
                images += [list(out.images[start : start + number]) for start in range(0, len(out.images), number)]
                rewards += out.rewards.tolist()
        return images, rewards


def save_images(folder: Path, images: Sequence[Sequence[Any]]) -> None:
    """Write the images of a schedule: 000-00.png is the first of the first prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, of_prompt in enumerate(images):
        for index, image in enumerate(of_prompt):
            image.save(folder / f"{place:03}-{index:02}.png")


def compared(
    drawn: Mapping[str, tuple[list[list[Any]], list[list[float]]]],
    samples: Sequence[Mapping[str, Any]],
    judge: Judge | None,
) -> dict[str, dict[str, Any]]:
    """Reward and verdicts of each method, and what they are above or below the first one.

    Args:
        drawn: name of a method -> images and rewards of each sample.
        samples: with `prompt`, and `tag` where they have one.
        judge: None for no verdicts.

    Returns:
        Name -> `reward`, `accuracy` (with a judge) and the paired differences `reward_gain` and `accuracy_gain`.
    """
    measured = {"reward": {name: outcomes(rewards, samples) for name, (_, rewards) in drawn.items()}}
    if judge is not None:
        found = {name: verdicts(judge, images, samples) for name, (images, _) in drawn.items()}
        measured["accuracy"] = {name: outcomes(values, samples) for name, values in found.items()}
    results: dict[str, dict[str, Any]] = {name: {} for name in drawn}
    for figure, of_methods in measured.items():
        gains = compare(of_methods, next(iter(drawn)))
        for name, own in of_methods.items():
            gain = gains.get(name)
            results[name][figure] = estimate(own.values())
            results[name][f"{figure}_gain"] = None if gain is None else gain["overall"]
    return results


def outcomes(values: Sequence[Sequence[float]], samples: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], Outcome]:
    """A figure of each image of each sample, by the places of both: what is paired between methods.

    Args:
        values: of the images of each sample.
        samples: with `prompt`, and `tag` where they have one.

    Example:
        >>> outcomes([[0.5]], [{"prompt": "a star", "tag": "single_object"}])
        {(0, 0): Outcome(value=0.5, prompt='a star', task='single_object')}
    """
    return {
        (place, index): Outcome(float(value), sample["prompt"], str(sample.get("tag", "prompts")))
        for place, (of_sample, sample) in enumerate(zip(values, samples, strict=True))
        for index, value in enumerate(of_sample)
    }


def verdicts(judge: Judge, images: Sequence[Sequence[Any]], samples: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """1 for each image of each sample that the judge calls correct, else 0."""
    pairs = zip(images, samples, strict=True)
    return [[float(one.correct) for one in judge.judge_images([sample] * len(ours), ours)] for ours, sample in pairs]


def table(results: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float]) -> list[str]:
    """Rows of text: method, share of the operations, figures with their intervals, gains."""
    return [
        "  ".join([f"{name:<28}", f"{shares[name]:6.1%}", *(_figure(title, ends) for title, ends in figures.items())])
        for name, figures in results.items()
    ]


def _figure(title: str, ends: Ends | None) -> str:
    if ends is None:
        return f"{title} -"
    return f"{title} {interval_text(ends, CHANGE if title.endswith('_gain') else RANGE)}"


def shares_of(schedules: Mapping[str, CacheSchedule | None], costs: CacheCosts) -> dict[str, float]:
    """Operations of each method, as a share of those with everything computed."""
    return {name: 1.0 if one is None else costs.share(one) for name, one in schedules.items()}
