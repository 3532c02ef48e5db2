"""Tiny random language models that encode the prompts of newer pipelines, and a tokenizer for all of them."""

from __future__ import annotations

import string
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>")
VOCABULARY = (*SPECIALS, *(letter for letter in string.printable))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '' }}"
    "{% endfor %}{% endif %}{% endfor %}"
)
TEXT_SIZE = 16
TEXT_SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": TEXT_SIZE,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_VISION_SIZES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_SIZE}


def make_letter_tokenizer(*, bos: bool = False, max_length: int = 512, **options: Any) -> PreTrainedTokenizerFast:
    """Spells a text letter by letter; id 0 pads on the right. With `bos` every text begins with id 1."""
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(VOCABULARY)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=False))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=max_length,
        padding_side="right",
        **options,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


class TextProcessor:
    """The part of a multimodal processor that reads texts: a tokenizer, and conversations of one message."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, *, text: list[str], **options: Any) -> Any:
        """As the tokenizer."""
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """Token ids of each conversation: a batch of one."""
        ids = self.tokenizer.apply_chat_template(messages, **options)
        return [ids] if options.get("tokenize") else ids


def make_qwen3(**options: Any) -> Qwen3Model:
    """Qwen3 without a head."""
    return Qwen3Model(Qwen3Config(**TEXT_SIZES, **options)).eval()


def make_qwen2_5_vl(**options: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL; its vision tower is there, and reads nothing."""
    config = Qwen2_5_VLConfig(
        text_config={**TEXT_SIZES, "rope_scaling": _ROPE, "rope_parameters": _ROPE, **options},
        vision_config=_VISION_SIZES,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def make_qwen3_vl(cls: type = Qwen3VLModel, **options: Any) -> Any:
    """Qwen3-VL, of the class that the pipeline asks for."""
    config = Qwen3VLConfig(
        text_config={**TEXT_SIZES, "rope_scaling": _ROPE, "rope_parameters": _ROPE, **options},
        vision_config={**_VISION_SIZES, "deepstack_visual_indexes": [0]},
    )
    return cls(config).eval()


def make_gemma2(**options: Any) -> Gemma2Model:
    """Gemma 2."""
    return Gemma2Model(Gemma2Config(**TEXT_SIZES, **options)).eval()


def make_bert() -> BertModel:
    """BERT with two layers."""
    sizes = {name: size for name, size in TEXT_SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
    return BertModel(BertConfig(**sizes, max_position_embeddings=128)).eval()
