"""Pipelines on the autoencoder of Qwen-Image, whose latents have an axis of frames: Qwen-Image, Krea 2, Nucleus."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen3VLForConditionalGeneration

from tests.tiny.families.family import Family, embedded, mask_of, with_negative
from tests.tiny.families.flux import CONTROL
from tests.tiny.language_models import (
    TEXT_SIZE,
    TextProcessor,
    make_letter_tokenizer,
    make_qwen2_5_vl,
    make_qwen3_vl,
)

LATENT_CHANNELS = 4


def make_qwen_image_vae() -> AutoencoderKLQwenImage:
    """4 pixels a latent; each channel has its own mean and spread."""
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.5, 0.8, 1.2],
    )


_SIZES: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4 * LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_SIZE,
    "axes_dims_rope": (8, 4, 4),
}


def _qwen_components() -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": make_qwen_image_vae(),
        "text_encoder": make_qwen2_5_vl(),
        "tokenizer": make_letter_tokenizer(),
        "transformer": QwenImageTransformer2DModel(**_SIZES),
    }


def _qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(**_qwen_components())


def _qwen_image_controlnet() -> QwenImageControlNetPipeline:
    return QwenImageControlNetPipeline(**_qwen_components(), controlnet=QwenImageControlNetModel(**_SIZES))


def _qwen_image21() -> QwenImage21Pipeline:
    channels = 8  # not 4, at which the pipeline would take RGBA images for latents
    return QwenImage21Pipeline(
        transformer=QwenImage21Transformer2DModel(
            in_channels=channels,
            out_channels=channels,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=TEXT_SIZE,
            mlp_ratio=2,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True, True],
            latents_mean=[0.1 * i for i in range(channels)],
            latents_std=[1.0 + 0.1 * i for i in range(channels)],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=make_qwen3_vl(Qwen3VLForConditionalGeneration),
        processor=TextProcessor(make_letter_tokenizer()),
    )


def _krea2() -> Krea2Pipeline:
    return Krea2Pipeline(
        transformer=Krea2Transformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=TEXT_SIZE,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
            rope_theta=1000.0,
        ),
        vae=make_qwen_image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
        ),
        text_encoder=make_qwen3_vl(),
        tokenizer=make_letter_tokenizer(),
        text_encoder_select_layers=(0, 1, 2),
    )


def _nucleus() -> NucleusMoEImagePipeline:
    return NucleusMoEImagePipeline(
        transformer=NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_SIZE,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            capacity_factors=[8.0, 8.0],
        ),
        vae=make_qwen_image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=make_qwen3_vl(Qwen3VLForConditionalGeneration),
        processor=make_letter_tokenizer(),
    )


def _embeddings_with_mask(prompts: list[str]) -> dict[str, object]:
    return {
        "prompt_embeds": embedded(prompts, 8, TEXT_SIZE),
        "prompt_embeds_mask": mask_of(prompts, 8),
        "negative_prompt_embeds": embedded(["ugly"] * len(prompts), 8, TEXT_SIZE),
        "negative_prompt_embeds_mask": mask_of(["ugly"] * len(prompts), 8),
    }


_SMALL = {"height": 32, "width": 32}
QWEN_IMAGE = {
    "QwenImagePipeline": Family(_qwen_image, _SMALL, with_negative),
    "QwenImageControlNetPipeline": Family(
        _qwen_image_controlnet, _SMALL | {"control_image": CONTROL[..., :32, :32]}, with_negative
    ),
    "QwenImage21Pipeline": Family(_qwen_image21, {"height": 64, "width": 64, "true_cfg_scale": 3.0}, with_negative),
    "Krea2Pipeline": Family(_krea2, {"height": 32, "width": 32, "max_sequence_length": 256, "guidance_scale": 3.0}),
    "NucleusMoEImagePipeline": Family(
        _nucleus, {"height": 32, "width": 32, "guidance_scale": 4.0}, _embeddings_with_mask
    ),
}
