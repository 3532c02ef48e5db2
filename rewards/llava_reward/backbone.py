"""The protocol of backbones: what LLaVA-Reward asks of a multimodal LLM, in four steps that dimensions can share."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BackboneInputs:
    """A batch of images and prompts as a backbone reads them.

    Attributes:
        input_ids: (B, S) int64, padded on the right; any valid id where a visual token will stand.
        attention_mask: (B, S) bool, True at real tokens.
        image_mask: (B, S) bool, True where a visual token stands; row by row in the order of the visual tokens.
        pixel_values: what the vision tower reads, differentiable with respect to the images.
        extras: whatever else the backbone's other steps need (grids, sizes, positions).

    B: number of images, S: length of the longest row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    pixel_values: Tensor
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_visual_tokens(self) -> list[int]:
        """Number of visual tokens of each of the B rows."""
        return self.image_mask.sum(dim=1).tolist()

    @property
    def last_token(self) -> Tensor:
        """(B,) int64, place of the last real token of each row."""
        return self.attention_mask.sum(dim=1) - 1


class Backbone(nn.Module, abc.ABC):
    """A frozen multimodal LLM without language-model head.

    The four steps are `prepare`, `encode_images`, `project` and the language model on `language_arguments`. LoRA is put
    into `language_model` only; each dimension has a projector of its own, which starts as a copy of `projector`.

    A subclass sets the two class variables, keeps the whole model in `self.model`, and implements the abstract methods.
    `rewards/llava_reward/backbones.py` is where its name is registered.

    Attributes:
        model: the whole model without language-model head.
        model_type: `model_type` in the checkpoint's config.json.
        norm_eps: epsilon of SkipCA's RMSNorm on this backbone.
    """

    model_type: ClassVar[str]
    norm_eps: ClassVar[float]
    model: PreTrainedModel

    @property
    @abc.abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The transformer that LoRA adapts; its forward takes `language_arguments`."""

    @property
    @abc.abstractmethod
    def projector(self) -> nn.Module:
        """The pretrained visual projector."""

    @property
    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Preprocessing options that are in force, by the names of `from_pretrained` (`{"num_crops": 16}`)."""

    @abc.abstractmethod
    def prepare(self, images: Sequence[Tensor], prompts: Sequence[str]) -> BackboneInputs:
        """Preprocess images and tokenise prompts.

        Args:
            images: B tensors (3, H, W) float32 in [0, 1], of any sizes, on the model's device.
            prompts: B strings.

        Raises:
            ValueError: for a prompt that holds a control token, such as the one that stands for the image.
        """

    @abc.abstractmethod
    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """Run the frozen vision tower; whatever of it comes before the projector."""

    @abc.abstractmethod
    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """Turn the features into visual tokens with a projector of the same architecture as `projector`.

        Returns:
            (T, D), the visual tokens of all images one after the other; T is `sum(inputs.num_visual_tokens)`.
        """

    @abc.abstractmethod
    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """Keyword arguments of `language_model`: embeddings with the visual tokens in place, mask, positions, no cache.

        Args:
            inputs: as `prepare` made them.
            visual_tokens: (T, D) as `project` made them.
        """

    @property
    def hidden_size(self) -> int:
        """D, the width of the language model."""
        return int(self.language_model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where inputs belong: the device of the token embeddings."""
        return self.language_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the token embeddings."""
        return self.language_model.get_input_embeddings().weight.dtype

    def embed_tokens(self, inputs: BackboneInputs, visual_tokens: Tensor) -> Tensor:
        """(B, S, D) token embeddings with the visual tokens (T, D) in the places that `image_mask` names."""
        embeddings = self.language_model.get_input_embeddings()(inputs.input_ids)
        mask = inputs.image_mask.unsqueeze(-1).expand_as(embeddings)
        return embeddings.masked_scatter(mask, visual_tokens.to(embeddings))

    def freeze(self) -> None:
        """Evaluation mode, no gradients to the weights; subclasses call it last in their constructor."""
        self.eval().requires_grad_(False)
