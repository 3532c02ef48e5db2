"""Backbones of LLaVA-Reward with random weights, made without any file, to measure and count with."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlavaNextConfig,
    LlavaNextModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
)

from fk_reward.rewards.llava_reward.backbone_sizes import FULL, LLAVA_NEXT, LLAVA_NEXT_GRID, PHI_VISION, QWEN_VL, TINY
from fk_reward.rewards.llava_reward.backbones.base import Backbone
from fk_reward.rewards.llava_reward.backbones.llava_next import AnyResTransform, LlavaNextBackbone
from fk_reward.rewards.llava_reward.backbones.phi3_vision import PhiVisionBackbone
from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import EMBEDDING_LAYER, PhiVisionConfig, PhiVisionModel
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import IMAGE_TOKEN as QWEN_IMAGE_TOKEN
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import PatchTransform, QwenVLBackbone

_END, _LLAVA_IMAGE_TOKEN = "<|endoftext|>", "<image>"
_SPECIAL_TOKENS = (
    _END,
    "<|user|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    QWEN_IMAGE_TOKEN,
    _LLAVA_IMAGE_TOKEN,
)
_LLAVA_TEMPLATE = (
    "USER: <image>\n{% for part in messages[0]['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
)
_QWEN_LIMITS = {"min_pixels": 3136, "max_pixels": 12845056}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that spells any text byte by byte; has the special tokens of all backbones and LLaVA's template.

    Example:
        >>> len(byte_tokenizer()("a cat<|im_end|>").input_ids)
        6
    """
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END, chat_template=_LLAVA_TEMPLATE
    )


def _phi(size: str, num_crops: int | None) -> Backbone:
    tokenizer, sizes = byte_tokenizer(), PHI_VISION[size]
    factors = [1.0] * (sizes["hidden_size"] // sizes["num_attention_heads"] // 2)
    config = PhiVisionConfig(
        **sizes,
        pad_token_id=tokenizer.pad_token_id,
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
        img_processor={"image_dim_out": sizes["vision_config"]["hidden_size"]},
        embd_layer=dict(EMBEDDING_LAYER),
    )
    return PhiVisionBackbone(PhiVisionModel(config), tokenizer, num_crops=num_crops or 16)


def _qwen(size: str, num_crops: int | None) -> Backbone:  # noqa: ARG001 (has no crops)
    tokenizer = byte_tokenizer()
    text_config = QWEN_VL[size]["text_config"] | {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=QWEN_VL[size]["vision_config"],
        image_token_id=tokenizer.convert_tokens_to_ids(QWEN_IMAGE_TOKEN),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return QwenVLBackbone(Qwen2_5_VLModel(config), tokenizer, transform=PatchTransform.from_config(_QWEN_LIMITS))


def _llava(size: str, num_crops: int | None) -> Backbone:  # noqa: ARG001 (its grid is fixed)
    tokenizer, sizes = byte_tokenizer(), LLAVA_NEXT[size]
    side = sizes["vision_config"]["image_size"]
    grid = [[rows * side, columns * side] for rows, columns in LLAVA_NEXT_GRID]
    config = LlavaNextConfig(
        **sizes, image_token_id=tokenizer.convert_tokens_to_ids(_LLAVA_IMAGE_TOKEN), image_grid_pinpoints=grid
    )
    processor = {"size": {"shortest_edge": side}, "crop_size": side, "image_grid_pinpoints": grid}
    return LlavaNextBackbone(LlavaNextModel(config), tokenizer, AnyResTransform.from_config(processor))


BUILDERS: dict[str, Callable[[str, int | None], Backbone]] = {"phi3_v": _phi, "qwen2_5_vl": _qwen, "llava_next": _llava}
"""Name of a backbone (`model_type` of its config.json) -> maker from size and number of crops."""


def random_backbone(name: str, *, full_size: bool = False, num_crops: int | None = None) -> Backbone:
    """Make a backbone with transformers' initial weights, on PyTorch's default device and in its default dtype.

    Args:
        name: "phi3_v", "qwen2_5_vl" or "llava_next".
        full_size: the sizes of the hub's checkpoint (4, 8 and 13 billion parameters); tiny ones otherwise.
        num_crops: of Phi-3.5-vision, None for the official 16; the others do not have it.

    Raises:
        KeyError: for another name.

    Example:
        >>> random_backbone("phi3_v", num_crops=4).options
        {'num_crops': 4}
    """
    return BUILDERS[name](FULL if full_size else TINY, num_crops)
