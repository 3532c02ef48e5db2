"""LAION's aesthetic predictor: the mark that people would give an image, whatever its prompt."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.float32_layers import Float32Sequential
from fk_reward.rewards.known_biases import LINE_DRAWINGS
from fk_reward.rewards.precision import in_loaded_dtype
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.weights import load_complete, read_state_dict

if TYPE_CHECKING:
    from transformers import CLIPModel

AestheticScoreT = TypeVar("AestheticScoreT", bound="AestheticScore")

_CLIP = "openai/clip-vit-large-patch14"
_REPOSITORY, _FILE = "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"
_MLP_LAYERS = tuple(f"layers.{index}." for index in (0, 2, 4, 6, 7))  # dropouts are between, activations nowhere
_LINEAR_LAYERS = ("",)

_CARD = RewardCard(
    name="aesthetic",
    summary="the mark from 1 to 10 that people would give the image, whatever its prompt",
    typical_range=(1.0, 10.0),  # the scale of the marks that it was trained on
    differentiable=True,
    looks_at="the central square",
    blind_to=("prompt", "edges"),
    biases=(LINE_DRAWINGS,),
    licence="Apache-2.0 (github.com/christophschuhmann/improved-aesthetic-predictor); MIT (CLIP)",
    source="Schuhmann et al. 2022, arXiv 2210.08402; github.com/christophschuhmann/improved-aesthetic-predictor",
    weights=f"{_REPOSITORY} on {_CLIP}",
    memory="1.2 GB in float32, 0.6 GB in float16",
)


class AestheticScore(Reward):
    """A linear head on the normalised embedding of a CLIP's image tower; the prompts are not read.

    The head stays in float32, whatever the tower's dtype: marks differ by less than what bfloat16 resolves. A model
    that a `CLIPScore` holds can be passed, so that both share it.

    Args:
        model: transformers' `CLIPModel`, its text tower may be deleted; put into evaluation mode and frozen, in place.
        head: maps embeddings (B, D) to (B, 1).
        preprocessing: resizing, crop and normalisation of the image tower.
        batch_size: number of images scored at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: when the head reads embeddings of another length than the model's.
    """

    half_dtype = torch.float16

    def __init__(
        self,
        model: CLIPModel,
        head: nn.Sequential,
        *,
        preprocessing: ImagePreprocessing,
        batch_size: int | None = None,
        card: RewardCard = _CARD,
    ) -> None:
        if head[0].in_features != model.config.projection_dim:
            raise ValueError(
                f"The head reads embeddings of length {head[0].in_features}, but this CLIP's have "
                f"{model.config.projection_dim}: it belongs to another one (768 is ViT-L/14, 512 is ViT-B)."
            )
        self.model = model.eval().requires_grad_(False)
        self.head = Float32Sequential(*head).float().eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.accepts_uint8 = preprocessing.accepts_uint8
        self.batch_size = batch_size
        self.card = card

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Mark each image."""
        pixel_values = self.preprocessing(images).to(self.model.dtype)
        embeddings = self.model.get_image_features(pixel_values=pixel_values).pooler_output
        return self.head(functional.normalize(embeddings.float(), dim=-1)).squeeze(-1)

    def modules_to_compile(self) -> list[nn.Module]:
        """The image tower."""
        return [self.model.vision_model]


def aesthetic_head(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Build the head from its state dict. Its layers are linear and could be one matrix; they are kept as published.

    Args:
        tensors: that of the improved predictor (`sac+logos+ava1-l14-linearMSE.pth`, five layers), or that of the older
            one (`sa_0_4_vit_l_14_linear.pth` of github.com/LAION-AI/aesthetic-predictor, a single layer).

    Raises:
        ValueError: for other tensors, among them those of heads with ReLU between the layers, and unfitting sizes.

    Example:
        >>> aesthetic_head({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)})[0]
        Linear(in_features=768, out_features=1, bias=True)
    """
    layers = _LINEAR_LAYERS if "weight" in tensors else _MLP_LAYERS
    expected = {f"{layer}{kind}" for layer in layers for kind in ("weight", "bias")}
    if expected != set(tensors):
        raise ValueError(
            f"Expected the linear head of an aesthetic predictor, with {', '.join(sorted(expected))}; "
            f"got {', '.join(sorted(tensors)[:10])}. (Heads with ReLU have layers 0, 3, 6, 9 and 11.)"
        )
    head = [_linear(tensors[f"{layer}weight"], tensors[f"{layer}bias"]) for layer in layers]
    if [layer.out_features for layer in head] != [*(layer.in_features for layer in head[1:]), 1]:
        raise ValueError(f"The layers of the head do not lead to one number: {head}.")
    return nn.Sequential(*head)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    try:
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"A layer of the head has unfitting tensors: {error}") from error
    return layer


def _build_aesthetic(
    *,
    weights: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] = _CLIP,
    torch_dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> AestheticScore:
    """Read the head from a file or the hub, and of a CLIP in the layout of transformers the image tower."""
    from transformers import CLIPModel

    head = aesthetic_head(read_state_dict(weights or _download_head()))
    clip = load_complete(CLIPModel, model, dtype=torch_dtype or torch.float32)
    del clip.text_model, clip.text_projection  # never used: 0.5 GB in float32
    card = dataclasses.replace(_CARD, weights=f"{weights or _REPOSITORY} on {model}")
    preprocessing = ImagePreprocessing.from_pretrained(model)
    reward = AestheticScore(clip, head, preprocessing=preprocessing, batch_size=batch_size, card=card)
    return in_loaded_dtype(reward, torch_dtype)


def _download_head() -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(_REPOSITORY, _FILE)


AESTHETIC = RewardEntry(_CARD, _build_aesthetic)
