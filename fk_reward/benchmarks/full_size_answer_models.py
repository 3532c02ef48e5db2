"""Vision-language models that answer, at their full size with random weights and a byte tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from fk_reward.benchmarks.published_sizes import LLAVA_7B, QWEN3_VL_2B, QWEN3_VL_4B
from fk_reward.rewards.answer_model import AnswerModel, without_video
from fk_reward.rewards.llava_reward.backbones.base import byte_tokenizer
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import QWEN2_5_VL
from fk_reward.rewards.q_align import LEVELS

_CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<image>")
_CONTENT = (
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}{{% else %}}"
    "{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    + _CONTENT.format(image="<|vision_start|><|image_pad|><|vision_end|>")
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    + _CONTENT.format(image="<image>\n")
    + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def llava() -> AnswerModel:
    """LLaVA-1.5-7B."""
    tokenizer = _tokenizer(_LLAVA_TEMPLATE, space_before_answer=True)
    config = LlavaConfig(**LLAVA_7B | {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")})
    side = config.vision_config.image_size
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    return AnswerModel(LlavaForConditionalGeneration(config), processor)


def qwen3_vl_2b() -> AnswerModel:
    """Qwen3-VL-2B."""
    return _qwen3_vl(QWEN3_VL_2B)


def qwen3_vl_4b() -> AnswerModel:
    """Qwen3-VL-4B."""
    return _qwen3_vl(QWEN3_VL_4B)


def qwen2_5_vl_7b() -> AnswerModel:
    """Qwen2.5-VL-7B."""
    tokenizer = _tokenizer(_QWEN_TEMPLATE)
    config = Qwen2_5_VLConfig(**dict(QWEN2_5_VL.full_size) | {"tie_word_embeddings": False} | _qwen_ids(tokenizer))
    return _qwen(Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor, tokenizer)


def _qwen3_vl(sizes: dict[str, Any]) -> AnswerModel:
    tokenizer = _tokenizer(_QWEN_TEMPLATE)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**sizes, **_qwen_ids(tokenizer)))
    return _qwen(model, Qwen3VLProcessor, tokenizer)


def _qwen(model: PreTrainedModel, processor: type[ProcessorMixin], tokenizer: PreTrainedTokenizerFast) -> AnswerModel:
    images = Qwen2VLImageProcessorPil(patch_size=model.config.vision_config.patch_size)
    return AnswerModel(model, without_video(processor)(images, tokenizer, chat_template=_QWEN_TEMPLATE))


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    tokens = {"image": "<|image_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _tokenizer(template: str, *, space_before_answer: bool = False) -> PreTrainedTokenizerFast:
    """Spells byte by byte, but what is read as an answer is one token, after a space where models write one."""
    tokenizer = byte_tokenizer(
        "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>", "<image>"
    )
    words = ("Yes", "No", *LEVELS)
    tokenizer.add_tokens([AddedToken(word, lstrip=space_before_answer or word in LEVELS) for word in words])
    tokenizer.chat_template = template
    return tokenizer
