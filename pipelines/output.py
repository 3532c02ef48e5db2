"""What a steered call returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from fk_reward.sampling.trace import SteeringTrace
from fk_reward.smc.weights import normalized_weights


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
