"""Sizes of the published models behind the rewards, where neither transformers' defaults nor the package have them.

They decide parameters, memory and time, so they are the published ones to the last number. Those of LLaVA-Reward's
backbones stand in the specs of `fk_reward.rewards.llava_reward.backbones`, those of ImageReward in
`fk_reward.rewards.imagereward_model`.
"""

from __future__ import annotations

from typing import Any

CLIP_L14: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
"""`config.json` of openai/clip-vit-large-patch14."""

CLIP_H14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "projection_dim": 1024,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}
"""`config.json` of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, from which HPS v2 and PickScore were fine-tuned."""

LLAVA_7B: dict[str, Any] = {
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
"""`config.json` of llava-hf/llava-1.5-7b-hf."""


def _qwen3_vl(text_config: dict[str, int]) -> dict[str, Any]:
    positions = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    text = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 262144}
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16}
    vision |= {"num_position_embeddings": 2304, "out_hidden_size": text_config["hidden_size"]}
    return {
        "tie_word_embeddings": True,
        "text_config": {**text, **text_config, "rope_parameters": positions, "tie_word_embeddings": True},
        "vision_config": {**vision, "deepstack_visual_indexes": [5, 11, 17]},
    }


QWEN3_VL_2B = _qwen3_vl(
    {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
)
"""`config.json` of Qwen/Qwen3-VL-2B-Instruct."""

QWEN3_VL_4B = _qwen3_vl(
    {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
)
"""`config.json` of Qwen/Qwen3-VL-4B-Instruct."""
