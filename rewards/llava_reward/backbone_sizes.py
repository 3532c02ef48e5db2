"""Sizes of the backbones of LLaVA-Reward: those of the checkpoints on the hub, and tiny ones of the same architecture.

They decide speed and memory, so they are the hub's to the last number. What does not (token ids, the values of
LongRoPE's factors) is left to whoever builds a model.
"""

from __future__ import annotations

from typing import Any

from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import CLIP_VIT_LARGE_336

FULL, TINY = "full", "tiny"

_CLIP_LARGE = {"model_type": "clip_vision_model"} | CLIP_VIT_LARGE_336
_CLIP_TINY = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 16,
}
_TEXT_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}

PHI_VISION: dict[str, dict[str, Any]] = {
    FULL: {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": 262144,
        "vision_config": _CLIP_LARGE,
    },
    TINY: _TEXT_TINY | {"original_max_position_embeddings": 1024, "vision_config": _CLIP_TINY},
}
"""`config.json` of microsoft/Phi-3.5-vision-instruct, its CLIP tower written out."""

QWEN_VL: dict[str, dict[str, Any]] = {
    FULL: {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    },
    TINY: {
        "text_config": _TEXT_TINY
        | {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    },
}
"""`config.json` of Qwen/Qwen2.5-VL-7B-Instruct in the two parts that transformers 5 makes of it."""

LLAVA_NEXT: dict[str, dict[str, Any]] = {
    FULL: {
        "text_config": {
            "model_type": "llama",
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        "vision_config": _CLIP_LARGE,
    },
    TINY: {"text_config": _TEXT_TINY | {"model_type": "llama"}, "vision_config": _CLIP_TINY},
}
"""`config.json` of llava-hf/llava-v1.6-vicuna-13b-hf."""

LLAVA_NEXT_GRID = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Its `image_grid_pinpoints`, height and width in crops."""
