"""A tiny ShieldGemma 2 with random weights, saved as the hub has it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Gemma3ImageProcessorPil,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
)

from tests.tiny.answer_models import byte_level, randomise

SIZE = 32
_SPECIALS = ("<pad>", "<eos>", "<bos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>user\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}Is this broken? {{ part['text'] }} Yes or No?{% endif %}"
    "{% endfor %}{% endfor %}\n"
)


def write_shieldgemma2(folder: Path, *, seed: int = 0) -> str:
    """Gemma 3 with a SigLIP of 32 pixels, whose 16 patches become 4 tokens; return the folder."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    roles = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    tokenizer = byte_level(_SPECIALS, **roles, extra_special_tokens=named)
    ids = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "query_pre_attn_scalar": 8}
    text |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ShieldGemma2Config(
        text_config=text,
        vision_config=vision | {"image_size": SIZE, "patch_size": 8},
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    config.yes_token_index, config.no_token_index = ids("Yes"), ids("No")  # 10784 and 3771 in the real one
    with torch.random.fork_rng(devices=[]):
        model = ShieldGemma2ForImageClassification(config)
    randomise(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    images = Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE})
    ShieldGemma2Processor(images, tokenizer, chat_template=_TEMPLATE, image_seq_length=4).save_pretrained(folder)
    return str(folder)
