"""What a steered call returns, and how it is made of what the wrapped pipeline returned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from fk_reward.pipelines.epilogue import first_field
from fk_reward.pipelines.steered_run import SteeredRun
from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.trace import SteeringTrace
from fk_reward.search.contract import selected_images
from fk_reward.search.diversity import diverse_groups
from fk_reward.smc.resampling import flat_indices
from fk_reward.smc.weights import normalized_weights

logger = logging.getLogger(__name__)


@dataclass
class FKSteeringOutput(BaseOutput):
    """Images of a steered call, best first for each prompt.

    With `selection="sample"` an image can be there several times, and with `"best"` where fewer are allowed than were
    asked for (a reward of -inf forbids an image).

    Attributes:
        images: of G prompts and n images for each, prompt-major: a list of PIL images, an array `(G * n, H, W, 3)`, a
            tensor `(G * n, 3, H, W)` in [0, 1], or latents `(G * n, ...)`, by `output_type`.
        rewards: `(G, n)` float32 on the CPU, in the order of the images.
        trace: record of the run.
        nsfw_content_detected: G * n flags of the wrapped pipeline's safety checker, None where it has none.
    """

    images: Any
    rewards: torch.Tensor
    trace: SteeringTrace
    nsfw_content_detected: list[bool] | None = None

    @property
    def weights(self) -> torch.Tensor:
        """`(G, n)` float64, weight of each image among the K particles of its prompt, which add up to 1.

        With `selection="best"` and n = K, weighted averages over the images estimate averages over the tilted law.
        Images that were drawn by weight (`"sample"`) count alike instead.
        """
        return normalized_weights(self.trace.steps[-1].log_weights).gather(1, self.trace.selected)

    @property
    def abstained(self) -> torch.Tensor:
        """`(G,)` bool, prompts of which every finished image was forbidden; their images are black (`abstain=True`)."""
        return self.rewards.isneginf().all(1)


_FLAGS = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")
"""Fields of outputs that say which images a safety checker has blacked out; DeepFloyd IF's names are the last two."""


def finish(run: SteeredRun, out: Any, *, num_images_per_prompt: int) -> FKSteeringOutput:
    """Score the finished samples, make the terminal correction, and select.

    What comes back is what the wrapped pipeline returned for this output type; the reward reads the same images before
    they were rounded to 8 bits (`RunningCall.finished`). An image that a safety checker has blacked out gets the reward
    -inf, and so the weight zero, while its prompt has an image that was not.

    Args:
        run: the run.
        out: the wrapped pipeline's output.
        num_images_per_prompt: n.
    """
    images, rewards, flags = scored_images(run, out)
    run.finish(rewards)
    selected = _selected(run, rewards, num_images_per_prompt)
    indices = flat_indices(selected, run.population.num_particles)
    return selected_output(
        _taken(images, indices),
        rewards.detach().to("cpu", torch.float32)[indices],
        None if flags is None else flags[indices],
        trace=run.trace(selected),
    )


def _selected(run: SteeredRun, rewards: Tensor, number: int) -> Tensor:
    """`(G, n)`, what the search selects, or diverse groups of its images."""
    selected = selected_images(run.population, number)
    if run.finished_images is None or number == 1:
        return selected
    embed = getattr(run.reward, "embed_images", None)
    features = run.exchange.gather(_compared(run, run.finished_images, embed))
    grouped = rewards.detach().to("cpu", torch.float32).view(len(selected), -1)
    weight = getattr(run.config, "diversity_weight", 1.0)
    selected, exact = diverse_groups(grouped, features, selected, angular=embed is not None, weight=weight)
    compared = "latents" if embed is None else f"embedding of {type(run.reward).__name__}"
    size = f"groups of {number} of {grouped.shape[1]}"
    how = f"all {size} were compared" if exact else f"greedily, as there are too many {size} to compare all"
    run.notes.append(f"Selected by reward and by distances of {compared}: {how}.")
    return selected


def _compared(run: SteeredRun, images: Tensor, embed: Callable[[Tensor], Tensor] | None) -> Tensor:
    """`(G * K, ...)`, by what images are compared: the reward's embedding of them, or else their latents."""
    if embed is None:
        return run.call.last_sample if run.predicted is None else run.predicted
    place = images.device if run.reward_device is None else run.reward_device
    with torch.no_grad():  # one by one, as no batch size is known to fit
        return torch.cat([embed(image[None].to(place)) for image in images])


def scored_images(run: SteeredRun, out: Any) -> tuple[Any, Tensor, Tensor | None]:
    """All images of a run as the pipeline returned them, their rewards `(G * K,)`, and which are blacked out.

    Args:
        run: the run, of which all processes' images are gathered.
        out: the wrapped pipeline's output.
    """
    returned, flags = first_field(out), _flags(out)
    rewards = run.score_finished(returned, flags)
    if flags is not None:
        flags = run.exchange.gather(flags)
        rewards = _without_flagged(rewards, flags.to(rewards.device), run)
    return _gathered(returned, run.exchange), rewards, flags


def selected_output(images: Any, rewards: Tensor, flags: Tensor | None, *, trace: SteeringTrace) -> FKSteeringOutput:
    """The output of a call whose images have been selected.

    Args:
        images: `(G * n, ...)`, copies; those of a prompt that has no allowed one are blacked out.
        rewards: `(G * n,)` float32 on the CPU.
        flags: `(G * n,)` bool, of a safety checker; None where it has none.
        trace: of the call.
    """
    grouped = rewards.view(trace.selected.shape)
    nothing_allowed = grouped.isneginf().all(1).repeat_interleave(grouped.shape[1])
    return FKSteeringOutput(
        images=_black(images, nothing_allowed.tolist()),
        rewards=grouped,
        trace=trace,
        nsfw_content_detected=None if flags is None else flags.tolist(),
    )


def _flags(out: Any) -> Tensor | None:
    """Which images were blacked out, `(B,)` bool; None where nothing was checked."""
    found = [np.asarray(value, dtype=bool) for name in _FLAGS if (value := getattr(out, name, None)) is not None]
    return torch.from_numpy(np.logical_or.reduce(found)).flatten() if found else None


def _without_flagged(rewards: Tensor, flags: Tensor, run: SteeredRun) -> Tensor:
    """Rewards with -inf for flagged images; where all of a prompt are, they keep theirs, and a warning says so."""
    grouped = flags.view(run.population.num_groups, -1)
    if not grouped.any():
        return rewards
    for group in grouped.all(1).nonzero().flatten().tolist():
        sentence = f"The safety checker blacked out all {grouped.shape[1]} images of prompt {group}."
        logger.warning(sentence)
        run.notes.append(sentence)
    excluded = (grouped & ~grouped.all(1, keepdim=True)).flatten()
    if excluded.any():
        run.notes.append(f"{int(excluded.sum())} images that the safety checker blacked out got the reward -inf.")
    return rewards.masked_fill(excluded, -torch.inf)


def _gathered(returned: Any, exchange: ParticleExchange) -> Any:
    """The images of all processes, in the form in which the pipeline returned them."""
    if exchange.num_processes == 1:
        return returned
    if isinstance(returned, Tensor):
        return exchange.gather(returned)
    if isinstance(returned, np.ndarray):
        return exchange.gather(torch.from_numpy(returned)).numpy()
    pixels = exchange.gather(torch.from_numpy(np.stack([np.asarray(image) for image in returned])))
    return [Image.fromarray(image) for image in pixels.numpy()]


def _taken(images: Any, indices: Tensor) -> Any:
    """The images at these places; a list stays one."""
    if isinstance(images, Sequence):
        return [images[i] for i in indices.tolist()]
    return images[indices.to(images.device)] if isinstance(images, Tensor) else images[indices.numpy()]


def _black(images: Any, places: list[bool]) -> Any:
    """Images, which are copies, with those at these places blacked out."""
    for i in (i for i, is_black in enumerate(places) if is_black):
        images[i] = Image.new("RGB", images[i].size) if isinstance(images, list) else 0
    return images
