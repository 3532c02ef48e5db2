"""Names of backbones: `model_type` of a checkpoint's config.json to the class that reads it."""

from __future__ import annotations

import abc
import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fk_reward.models import model_source, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKBONES: dict[str, str] = {
    "phi3_v": "fk_reward.rewards.llava_reward.backbones.phi3_vision:PhiVisionBackbone",
    "qwen2_5_vl": "fk_reward.rewards.llava_reward.backbones.qwen2_5_vl:QwenVLBackbone",
    "llava_next": "fk_reward.rewards.llava_reward.backbones.llava_next:LlavaNextBackbone",
}
"""`model_type` -> "module:class" of a `Backbone`. A new backbone joins by one line."""


def backbone_class(path: str | os.PathLike[str], *, revision: str = "main") -> type[Backbone]:
    """Find the class for an embedded model, hub repository or folder by its config.json; nothing else is read.

    Raises:
        OSError: when there is no config.json.
        ValueError: when its `model_type` is not one of `BACKBONES`.
    """
    path = model_source(path, "a backbone")
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if not config:  # what transformers gives for a folder without the file
        raise FileNotFoundError(f"{path} has no config.json: expected the folder of a multimodal LLM, or a hub id.")
    model_type = config.get("model_type")
    if model_type not in BACKBONES:
        raise ValueError(
            f"{path}: model_type is {model_type!r}; backbones of LLaVA-Reward have one of {', '.join(BACKBONES)}."
        )
    module, _, name = BACKBONES[model_type].partition(":")
    return getattr(importlib.import_module(module), name)


def load_backbone(
    path: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    revision: str = "main",
    **options: Any,
) -> Backbone:
    """Load a frozen backbone from a hub repository or folder, by transformers' own loading.

    Args:
        path: name of an embedded model ("shapes-mllm"), hub id or folder; with config.json, tokenizer and safetensors,
            sharded or not.
        torch_dtype: floating dtype of the weights; the official code uses bfloat16.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        quantization_config: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        options: preprocessing options of this backbone (`num_crops` of Phi-3.5-vision; `min_pixels` and `max_pixels`
            of Qwen2.5-VL); None stands for the backbone's default.

    Raises:
        OSError: when files are missing.
        TypeError: for an option that this backbone does not have.
        ValueError: when the checkpoint is of another kind, or weights are missing from it.
    """
    path = resolve_model(path)
    cls = backbone_class(path, revision=revision)
    known = default_options(cls).keys()
    given = {name: value for name, value in options.items() if value is not None}
    if not given.keys() <= known:
        raise TypeError(
            f"{cls.__name__} has no option {', '.join(sorted(given.keys() - known))}; "
            f"its options: {', '.join(sorted(known)) or 'none'}."
        )
    return cls.from_pretrained(  # type: ignore[attr-defined]
        path,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        quantization_config=quantization_config,
        revision=revision,
        **given,
    )


def default_options(cls: type[Backbone]) -> dict[str, Any]:
    """The preprocessing options of a backbone: what its `from_pretrained` takes besides `load_backbone`'s own.

    Example:
        >>> from fk_reward.rewards.llava_reward.backbones.phi3_vision import PhiVisionBackbone
        >>> default_options(PhiVisionBackbone)
        {'num_crops': 16}
    """
    own = inspect.signature(cls.from_pretrained).parameters  # type: ignore[attr-defined]
    shared = inspect.signature(load_backbone).parameters
    return {name: parameter.default for name, parameter in own.items() if name not in shared}


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
    `rewards/llava_reward/backbones/base.py` is where its name is registered.

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
