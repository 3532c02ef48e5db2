"""What a steered call returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from fk_reward.trace import SteeringTrace


@dataclass
class FKSteeringOutput(BaseOutput):
    """Images of a steered call, best first for each prompt.

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
