"""Sizes of published models: `config.json` of the pipelines and of the answering models."""

from __future__ import annotations

from typing import Any

CLIP_TOKENS = 49408
"""Entries of CLIP's vocabulary, the size of the token embedding of every text encoder here."""

AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
"""`vae/config.json` of Stable Diffusion 1, 2 and XL, less `sample_size`, `scaling_factor` and `force_upcast`.

That of Stable Diffusion 2 does not say `force_upcast`, so that Diffusers' default holds: true."""

SD_2_UNET: dict[str, Any] = {
    "attention_head_dim": (5, 10, 20, 20),
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "use_linear_projection": True,
}
"""`unet/config.json` of stable-diffusion-2-1 and -2-1-base, less `sample_size`: 96 and 64."""

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}
"""`unet/config.json` of stabilityai/stable-diffusion-xl-base-1.0."""

SD_2_TEXT: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
"""`text_encoder/config.json` of stable-diffusion-2-1: OpenCLIP's ViT-H-14 less its last layer."""

CLIP_L14_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
"""`text_encoder/config.json` of SDXL: the text tower of openai/clip-vit-large-patch14."""

CLIP_BIGG_TEXT: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
"""`text_encoder_2/config.json` of SDXL: the text tower of OpenCLIP's ViT-bigG-14."""

NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""`scheduler/scheduler_config.json` of all of them, less `prediction_type`."""


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


def _qwen3_vl(
    text_config: dict[str, int], *, vision: dict[str, Any] | None = None, tied: bool = True
) -> dict[str, Any]:
    positions = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    text = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 262144}
    small = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
    of_all = {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304}
    return {
        "tie_word_embeddings": tied,
        "text_config": {**text, **text_config, "rope_parameters": positions, "tie_word_embeddings": tied},
        "vision_config": {**of_all, **(vision or small), "out_hidden_size": text_config["hidden_size"]},
    }


QWEN3_VL_2B = _qwen3_vl(
    {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
)
"""`config.json` of Qwen/Qwen3-VL-2B-Instruct."""

QWEN3_VL_4B = _qwen3_vl(
    {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
)
"""`config.json` of Qwen/Qwen3-VL-4B-Instruct."""

QWEN3_VL_8B = _qwen3_vl(
    {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
    vision={"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
    tied=False,
)
"""`config.json` of Qwen/Qwen3-VL-8B-Instruct."""


FLUX_TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "pooled_projection_dim": 768,
}
"""`transformer/config.json` of black-forest-labs/FLUX.1-dev: 11.9 billion parameters."""

FLUX_AUTOENCODER: dict[str, Any] = AUTOENCODER | {
    "latent_channels": 16,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
"""`vae/config.json` of black-forest-labs/FLUX.1-dev, less `sample_size`, `scaling_factor` and `shift_factor`."""

FLUX_TEXT_TOKENS = 512
"""`max_sequence_length` of the call of Diffusers' FluxPipeline: tokens of T5 that its transformer reads."""

SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
"""`vision_config` of google/siglip-so400m-patch14-384."""

QWEN2_VL_7B: dict[str, Any] = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 151658,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "patch_size": 14},
}
"""`config.json` of Qwen/Qwen2-VL-7B-Instruct, its vocabulary as HPSv3 cuts it: the tokenizer's and one token more."""

SHIELDGEMMA_2_4B: dict[str, Any] = {
    "tie_word_embeddings": True,
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
        "vocab_size": 262208,
        "tie_word_embeddings": True,
    },
    "vision_config": SIGLIP_SO400M | {"image_size": 896, "vision_use_head": False},
}
"""`config.json` of google/shieldgemma-2-4b-it, a google/gemma-3-4b-it, less the ids of its tokens."""
