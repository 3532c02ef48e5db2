"""The runs of the demo: every method starts from the same seeds, and best of K costs as much as steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.sampling.trace import SteeringTrace
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.shapes import ShapesPrompt, verify

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

ONE, BEST, STEERED = "one picture", "best of K", "steered"
METHODS = (ONE, BEST, STEERED)

STEERING = FKSteeringConfig(
    potential="immediate", reward_scale=30.0, resample_start=0.6, resample_stop=0.9, ess_threshold=1.0
)
"""Resample late and always, by what is predicted now: chosen on training prompts (docs/shapes.md)."""


@dataclass(frozen=True, eq=False)
class DemoPicture:
    """A finished picture.

    Attributes:
        image: (3, H, W) float32 in [0, 1], on the CPU.
        reward: by the reward that steers.
        correct: the strict judgement of the verifier.
        reason: what the verifier says.
    """

    image: Tensor
    reward: float
    correct: bool
    reason: str


@dataclass(frozen=True, eq=False)
class DemoResult:
    """All pictures of a demo.

    Attributes:
        prompts: N prompts.
        pictures: method -> N pictures.
        num_particles: K.
        seconds: method -> wall clock of its call; None for one picture, which is the first of the best of K.
        trace: of the steered call.
    """

    prompts: tuple[ShapesPrompt, ...]
    pictures: Mapping[str, tuple[DemoPicture, ...]]
    num_particles: int
    seconds: Mapping[str, float | None]
    trace: SteeringTrace

    def label(self, method: str) -> str:
        """Name of a method as shown to people: K is a number there."""
        return method.replace("K", str(self.num_particles))

    @property
    def most_resampled(self) -> int:
        """Index of the prompt whose particles lost most of the first ancestors."""
        survivors = [len(self.trace.lineage(i)[0].unique()) for i in range(len(self.prompts))]
        return survivors.index(min(survivors))


def run_demo(
    pipe: FKSteeringPipeline, prompts: Sequence[ShapesPrompt], *, seed: int, arguments: Mapping[str, Any]
) -> DemoResult:
    """Draw each prompt by all methods.

    Args:
        pipe: a pipeline of the shapes world, with the settings of the sampler.
        prompts: what to draw.
        seed: particle k of prompt i starts from `seed + i * K + k`, whatever the method.
        arguments: further arguments of the pipeline's call.

    Returns:
        The judged pictures. One picture is the first particle of best of K: the same noise without any choice.
    """
    num_particles = pipe.steering.num_particles
    texts = [prompt.text for prompt in prompts]

    def call(**options: Any) -> FKSteeringOutput:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(texts) * num_particles)]
        return pipe(texts, generator=generators, output_type="pt", **arguments, **options)

    plain = call(num_resamples=0, num_images_per_prompt=num_particles)
    steered = call()
    first = [int((slots == 0).nonzero()[0]) for slots in plain.trace.selected]
    return DemoResult(
        prompts=tuple(prompts),
        pictures={
            ONE: _judge(plain, prompts, first),
            BEST: _judge(plain, prompts, [0] * len(prompts)),
            STEERED: _judge(steered, prompts, [0] * len(prompts)),
        },
        num_particles=num_particles,
        seconds={ONE: None, BEST: plain.trace.seconds, STEERED: steered.trace.seconds},
        trace=steered.trace,
    )


def _judge(output: FKSteeringOutput, prompts: Sequence[ShapesPrompt], ranks: Sequence[int]) -> tuple[DemoPicture, ...]:
    """The picture at the given place of each prompt."""
    images = output.images.float().cpu().unflatten(0, output.rewards.shape)
    pictures = []
    for index, (prompt, rank) in enumerate(zip(prompts, ranks, strict=True)):
        verdict = verify(images[index, rank], prompt)
        reward = float(output.rewards[index, rank])
        pictures.append(DemoPicture(images[index, rank], reward, verdict.correct, verdict.reason))
    return tuple(pictures)
