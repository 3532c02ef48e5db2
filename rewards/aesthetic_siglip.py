"""Aesthetic Predictor v2.5: the mark that people would give an image, read from SigLIP's embedding."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.weights import load_complete, read_state_dict

if TYPE_CHECKING:
    from transformers import SiglipVisionModel

SiglipAestheticT = TypeVar("SiglipAestheticT", bound="SiglipAesthetic")

_SIGLIP = "google/siglip-so400m-patch14-384"
_LAYERS = tuple(f"scoring_head.{index}" for index in (0, 2, 4, 6, 8))  # dropouts are between, activations nowhere

_CARD = RewardCard(
    name="aesthetic-v2.5",
    summary="the mark from 1 to 10 that people would give the image, by a head on SigLIP; blind to the prompt",
    typical_range=(1.0, 10.0),
    differentiable=True,
    looks_at="the whole image, squeezed into a square of 384 pixels",
    blind_to=("prompt",),
    licence="AGPL-3.0 (head: github.com/discus0434/aesthetic-predictor-v2-5); Apache-2.0 (SigLIP)",
    source="github.com/discus0434/aesthetic-predictor-v2-5; Zhai et al. 2023, arXiv 2303.15343 (SigLIP)",
    weights=f"aesthetic_predictor_v2_5.pth, given by the caller, on {_SIGLIP}",
    memory="1.7 GB in float32, 0.9 GB in float16",
)


class SiglipAesthetic(Reward):
    """Linear layers on the normalised pooled embedding of SigLIP's image tower; the prompts are not read.

    Only the format of the checkpoint is known here, no code of its authors. The head stays in float32, whatever the
    tower's dtype.

    Args:
        tower: transformers' `SiglipVisionModel`; put into evaluation mode and frozen, in place.
        head: maps embeddings (B, D) to (B, 1).
        preprocessing: resizing and normalisation of the tower.
        batch_size: number of images scored at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: when the head reads embeddings of another length than the tower's.
    """

    def __init__(
        self,
        tower: SiglipVisionModel,
        head: nn.Sequential,
        *,
        preprocessing: ImagePreprocessing,
        batch_size: int | None = None,
        card: RewardCard = _CARD,
    ) -> None:
        if head[0].in_features != tower.config.hidden_size:
            raise ValueError(
                f"The head reads embeddings of length {head[0].in_features}, but this SigLIP's have "
                f"{tower.config.hidden_size}: it belongs to another one (1152 is so400m)."
            )
        self.tower = tower.eval().requires_grad_(False)
        self.head = head.float().eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.accepts_uint8 = True
        self.batch_size = batch_size
        self.card = card

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Mark each image."""
        pixel_values = self.preprocessing(images).to(self.tower.dtype)
        embeddings = self.tower(pixel_values=pixel_values).pooler_output
        return self.head(functional.normalize(embeddings.float(), dim=-1)).squeeze(-1)

    def modules_to_compile(self) -> list[nn.Module]:
        """The image tower."""
        return [self.tower]

    def to(
        self: SiglipAestheticT, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SiglipAestheticT:
        """Move the weights, in place; the head keeps its dtype. Return the reward itself."""
        self.tower.to(device=device, dtype=dtype)
        self.head.to(device=device)
        return self


def siglip_head(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Build the head from its state dict: five linear layers without activations, dropouts left out.

    Args:
        tensors: `scoring_head.{0,2,4,6,8}.{weight,bias}`, as `aesthetic_predictor_v2_5.pth` has them.

    Raises:
        ValueError: for other tensors, or sizes that do not lead to one number.

    Example:
        >>> names = [f"scoring_head.{i}" for i in (0, 2, 4, 6, 8)]
        >>> tensors = {f"{name}.weight": torch.zeros(1, 1) for name in names}
        >>> len(siglip_head(tensors | {f"{name}.bias": torch.zeros(1) for name in names}))
        5
    """
    expected = {f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}
    if expected != set(tensors):
        raise ValueError(
            f"Expected the head of Aesthetic Predictor v2.5, with {', '.join(sorted(expected))}; got "
            f"{', '.join(sorted(tensors)[:10])}."
        )
    widths = [tensors[f"{layer}.weight"].shape for layer in _LAYERS]
    if any(len(shape) != 2 for shape in widths) or [out for out, _ in widths] != [*(into for _, into in widths[1:]), 1]:
        raise ValueError(f"The layers of the head do not lead to one number: {[tuple(shape) for shape in widths]}.")
    head = nn.Sequential(*(nn.Linear(into, out) for out, into in widths))
    names = {f"{place}.{kind}": f"{layer}.{kind}" for place, layer in enumerate(_LAYERS) for kind in ("weight", "bias")}
    head.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()})
    return head


def _build_siglip_aesthetic(
    *,
    weights: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] = _SIGLIP,
    torch_dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    revision: str = "main",
) -> SiglipAesthetic:
    """Read the head from a file, and of a SigLIP in the layout of transformers the image tower."""
    from transformers import SiglipModel

    if weights is None:
        raise ValueError(
            "The head is under the AGPL and on no hub: fetch models/aesthetic_predictor_v2_5.pth of "
            "github.com/discus0434/aesthetic-predictor-v2-5, and give weights=<file>."
        )
    head = siglip_head(read_state_dict(weights))
    tower = load_complete(SiglipModel, model, dtype=torch_dtype, revision=revision).vision_model
    card = dataclasses.replace(_CARD, weights=f"{weights} on {model}")
    preprocessing = ImagePreprocessing.from_pretrained(model, revision=revision, crops=False)
    return SiglipAesthetic(tower, head, preprocessing=preprocessing, batch_size=batch_size, card=card)


AESTHETIC_V2_5 = RewardEntry(_CARD, _build_siglip_aesthetic)
