"""The interface of a backbone of LLaVA-Reward, and the table of the multimodal LLMs that implement it."""

from __future__ import annotations

import abc
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fk_reward.models import model_source, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
    from typing_extensions import Self

BACKBONES: dict[str, str] = {
    "phi3_v": "fk_reward.rewards.llava_reward.backbones.phi3_vision:PHI3_VISION",
    "qwen2_5_vl": "fk_reward.rewards.llava_reward.backbones.qwen2_5_vl:QWEN2_5_VL",
    "llava_next": "fk_reward.rewards.llava_reward.backbones.llava_next:LLAVA_NEXT",
}
"""`model_type` of a checkpoint's config.json -> "module:object" of a `BackboneSpec`. A new backbone is a file and a
line here."""


KEPT_BATCHES = 8
"""Batches whose tokens and positions a backbone keeps; one of 8 images of 1024 x 1024 takes half a megabyte."""


@dataclass(frozen=True)
class BackboneInputs:
    """A batch of images and prompts as a backbone reads them.

    Attributes:
        input_ids: (B, S) int64, padded on the right; any valid id at the places of visual tokens.
        attention_mask: (B, S) bool, True at real tokens.
        image_mask: (B, S) bool, True at visual tokens; row by row in the order of the visual tokens.
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
    into `language_model` only; each dimension has its own projector, which starts as a copy of `projector`.

    A subclass sets the two class variables, keeps the complete model in `self.model`, and implements the abstract
    methods. Its `BackboneSpec` is in the same file, and a line in `BACKBONES` registers it.

    Attributes:
        model: the complete model without language-model head.
        model_type: `model_type` in the checkpoint's config.json.
        norm_eps: epsilon of SkipCA's RMSNorm on this backbone.
        accepts_uint8: whether `prepare` also takes uint8 images; otherwise 8-bit ones are divided by 255 first.
    """

    model_type: ClassVar[str]
    norm_eps: ClassVar[float]
    accepts_uint8: ClassVar[bool] = False
    model: PreTrainedModel

    @classmethod
    @abc.abstractmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        device_map: str | dict[str, Any] | None = None,
        quantization_config: Any = None,
        revision: str = "main",
        **options: Any,
    ) -> Self:
        """Load a hub repository or folder; a subclass names its preprocessing options instead of `options`.

        Args:
            path: hub id or folder.
            torch_dtype: floating dtype of the weights.
            attn_implementation: "sdpa", "eager", "flash_attention_2", ...
            device_map: as in `PreTrainedModel.from_pretrained`.
            quantization_config: as in `PreTrainedModel.from_pretrained`.
            revision: branch, tag or commit of the hub repository.
            options: preprocessing options.

        Raises:
            OSError: when files are missing.
            ValueError: for another model type, and when the weights are not those of the config.
        """

    @classmethod
    def default_options(cls) -> dict[str, Any]:
        """The preprocessing options: what `from_pretrained` takes besides the arguments of all backbones.

        Example:
            >>> backbone_spec("phi3_v").backbone.default_options()
            {'num_crops': 16}
        """
        own = inspect.signature(cls.from_pretrained).parameters
        shared = inspect.signature(Backbone.from_pretrained).parameters
        return {name: parameter.default for name, parameter in own.items() if name not in shared}

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
        """Preprocessing options in use, by the names of `from_pretrained` (`{"num_crops": 16}`)."""

    @abc.abstractmethod
    def prepare(self, images: Sequence[Tensor], prompts: Sequence[str]) -> BackboneInputs:
        """Preprocess images and tokenise prompts.

        Args:
            images: B tensors (3, H, W) float32 in [0, 1], of any sizes, on the model's device; also uint8 where
                `accepts_uint8` is set.
            prompts: B strings.

        Raises:
            ValueError: for a prompt that contains a control token, such as the placeholder of the image.
        """

    @abc.abstractmethod
    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """Run the frozen vision tower, up to the projector."""

    @abc.abstractmethod
    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """Turn the features into visual tokens with a projector of the same architecture as `projector`.

        Returns:
            (T, D), the visual tokens of all images one after the other; T is `sum(inputs.num_visual_tokens)`.
        """

    @abc.abstractmethod
    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """Keyword arguments of `language_model`: embeddings with the visual tokens in place, positions, no cache.

        Padding is on the right, where causal attention never sees it: a mask would only be in the way of faster
        kernels.

        Args:
            inputs: as `prepare` made them.
            visual_tokens: (T, D) as `project` made them.
        """

    def with_options(self, **options: Any) -> Self:
        """The same backbone, with the same weights, that prepares images in another way.

        Args:
            options: some of `options`, by name.

        Raises:
            TypeError: for an option that this backbone does not have, or cannot change.
            ValueError: for a value that is not allowed.
        """
        raise TypeError(f"{type(self).__name__} cannot prepare images with {', '.join(options)} once it is loaded.")

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
        """(B, S, D) token embeddings with the visual tokens (T, D) where `image_mask` is True."""
        # `masked_scatter` fills row by row, the order of the visual tokens, and keeps the graph to the images.
        embeddings = self.language_model.get_input_embeddings()(inputs.input_ids)
        mask = inputs.image_mask.unsqueeze(-1).expand_as(embeddings)
        return embeddings.masked_scatter(mask, visual_tokens.to(embeddings))

    def freeze(self) -> None:
        """Set evaluation mode and freeze the weights; subclasses call it last in their constructor."""
        self.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class OfficialLayout:
    """What the official LLaVA-Reward checkpoints of one backbone look like.

    Attributes:
        folder_word: name of the backbone in the names of their folders ("phi").
        name_suffix: what follows the dimension in the names of their rewards ("@qwen").
        projector: name of the visual projector's module.
        projector_keys: its tensors.
        query: name of the attention's query projection, which tells fused (`qkv_proj`) from separate ones (`q_proj`).
        attends_to: what SkipCA sees, as in `LlavaRewardConfig`; None where the official code has no SkipCA.
        options: preprocessing that the official code uses.
    """

    folder_word: str
    name_suffix: str = ""
    projector: str
    projector_keys: tuple[str, ...]
    query: str
    attends_to: str | None = "visual"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Everything about a backbone besides its code.

    Attributes:
        backbone: the class; its `model_type` is the name in `BACKBONES`.
        hub_id: the checkpoint on the hub that the official scripts use, or the usual one.
        licence: of that checkpoint.
        memory: memory of its rewards, in words.
        official: layout of the official reward checkpoints; None where there are no such checkpoints.
        full_size: sizes of the hub's checkpoint, as `build` takes them: all that decide speed and memory. The others
            (token ids, the values of LongRoPE's factors) are left to `build`.
        tiny: sizes of a small model of the same architecture.
        build: makes a backbone with transformers' initial weights from sizes and preprocessing options.
    """

    backbone: type[Backbone]
    hub_id: str
    licence: str = "not stated"
    memory: str = "not stated"
    official: OfficialLayout | None = None
    full_size: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[..., Backbone] | None = None

    @property
    def model_type(self) -> str:
        """Its name in `BACKBONES`."""
        return self.backbone.model_type


def backbone_spec(model_type: str) -> BackboneSpec:
    """Find a backbone by its name; no weights are read and transformers is not imported.

    Raises:
        ValueError: for an unknown name; it lists the known ones.

    Example:
        >>> backbone_spec("phi3_v").hub_id
        'microsoft/Phi-3.5-vision-instruct'
    """
    if model_type not in BACKBONES:
        raise ValueError(f"model_type is {model_type!r}; backbones of LLaVA-Reward have one of {', '.join(BACKBONES)}.")
    module, _, name = BACKBONES[model_type].partition(":")
    return getattr(importlib.import_module(module), name)


def backbone_specs() -> dict[str, BackboneSpec]:
    """All of `BACKBONES`.

    Example:
        >>> [name for name, spec in backbone_specs().items() if "num_crops" in spec.backbone.default_options()]
        ['phi3_v']
    """
    return {name: backbone_spec(name) for name in BACKBONES}


def spec_of(path: str | os.PathLike[str], *, revision: str = "main") -> BackboneSpec:
    """Find the backbone of an embedded model, hub repository or folder by its config.json; nothing else is read.

    Raises:
        OSError: when there is no config.json.
        ValueError: when its `model_type` is not one of `BACKBONES`.
    """
    from transformers import PreTrainedConfig

    path = model_source(path, "a backbone")
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if not config:  # transformers returns {} for a folder without the file
        raise FileNotFoundError(f"{path} has no config.json: expected the folder of a multimodal LLM, or a hub id.")
    model_type = config.get("model_type")
    if model_type not in BACKBONES:
        raise ValueError(
            f"{path}: model_type is {model_type!r}; backbones of LLaVA-Reward have one of {', '.join(BACKBONES)}."
        )
    return backbone_spec(model_type)


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
            of Qwen2.5-VL); None means the backbone's default.

    Raises:
        OSError: when files are missing.
        TypeError: for an option that this backbone does not have.
        ValueError: when the checkpoint is of another kind, or weights are missing from it.
    """
    path = resolve_model(path)
    cls = spec_of(path, revision=revision).backbone
    known = cls.default_options().keys()
    # None is what an unset option of the command line or of training arrives as, for backbones without it, too.
    given = {name: value for name, value in options.items() if value is not None}
    if not given.keys() <= known:
        raise TypeError(
            f"{cls.__name__} has no option {', '.join(sorted(given.keys() - known))}; "
            f"its options: {', '.join(sorted(known)) or 'none'}."
        )
    return cls.from_pretrained(
        path,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        quantization_config=quantization_config,
        revision=revision,
        **given,
    )


CLIP_LARGE: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""Sizes of CLIP ViT-L/14 at 336 pixels, the vision tower of Phi-3.5-vision and of LLaVA-NeXT."""

CLIP_TINY: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 16,
}
TEXT_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}


def random_backbone(model_type: str, *, full_size: bool = False, **options: Any) -> Backbone:
    """Make a backbone with transformers' initial weights, on PyTorch's default device and in its default dtype.

    Nothing is downloaded. Use it to measure speed, count parameters and test.

    Args:
        model_type: a name of `BACKBONES`.
        full_size: the sizes of the hub's checkpoint (4, 8 and 13 billion parameters); tiny ones otherwise.
        options: preprocessing options; None means the default, and a backbone without the option ignores it.

    Raises:
        ValueError: for another name, or a backbone whose spec has no `build`.

    Example:
        >>> random_backbone("phi3_v", num_crops=4).options
        {'num_crops': 4}
    """
    spec = backbone_spec(model_type)
    if spec.build is None:
        raise ValueError(f"{model_type} has no build in its BackboneSpec: it cannot be made with random weights.")
    defaults = spec.backbone.default_options()
    given = {name: value for name, value in options.items() if value is not None and name in defaults}
    return spec.build(spec.full_size if full_size else spec.tiny, **given)


def byte_tokenizer(*special_tokens: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that spells any text byte by byte, for models with random weights.

    Args:
        special_tokens: further control tokens; `<|endoftext|>` ends and pads a text.
        chat_template: in Jinja, as transformers takes it.

    Example:
        >>> len(byte_tokenizer("<|im_end|>")("a cat<|im_end|>").input_ids)
        6
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = (end, *special_tokens)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, chat_template=chat_template
    )
