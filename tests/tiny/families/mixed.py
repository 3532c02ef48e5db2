"""HiDream, Z-Image, HunyuanImage, GLM-Image, DreamLite: one transformer each, with a text encoder of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderTiny,
    DreamLiteMobilePipeline,
    DreamLitePipeline,
    DreamLiteUNetModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3VLForConditionalGeneration

from tests.tiny.components import HIDDEN_SIZE, T5_SIZE, make_projected_clip_text_model, make_t5_encoder, make_vae
from tests.tiny.families.family import Family, embedded
from tests.tiny.families.flux import CONTROL, make_flux_vae
from tests.tiny.language_models import (
    TEXT_SIZE,
    TEXT_SIZES,
    make_letter_tokenizer,
    make_qwen2_5_vl,
    make_qwen3,
    make_qwen3_vl,
)
from tests.tiny.tokenizers import make_clip_tokenizer, make_t5_tokenizer

_SMALL = {"height": 64, "width": 64}


def _hidream() -> HiDreamImagePipeline:
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_flux_vae(),
        text_encoder=make_projected_clip_text_model(),
        tokenizer=make_clip_tokenizer(),
        text_encoder_2=make_projected_clip_text_model(),
        tokenizer_2=make_clip_tokenizer(),
        text_encoder_3=make_t5_encoder(),
        tokenizer_3=make_t5_tokenizer(),
        text_encoder_4=LlamaForCausalLM(LlamaConfig(**TEXT_SIZES, attn_implementation="eager")),
        tokenizer_4=make_letter_tokenizer(bos=True),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[T5_SIZE, TEXT_SIZE],
            text_emb_dim=2 * HIDDEN_SIZE,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=(0, 1),
        ),
    )
    pipe.default_sample_size = 8  # every size is rounded to this area
    return pipe


def _z_image_components() -> dict[str, Any]:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_SIZE,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.ones_(token)  # they begin as uninitialised memory
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": make_flux_vae(),
        "text_encoder": make_qwen3(),
        "tokenizer": make_letter_tokenizer(),
        "transformer": transformer,
    }


def _z_image() -> ZImagePipeline:
    return ZImagePipeline(**_z_image_components())


def _z_image_controlnet() -> ZImageControlNetPipeline:
    controlnet = ZImageControlNetModel(
        control_layers_places=[0, 1],
        control_refiner_layers_places=[0],
        control_in_dim=4,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return ZImageControlNetPipeline(**_z_image_components(), controlnet=controlnet)


def _hunyuan_image() -> HunyuanImagePipeline:
    pipe = HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 64, 64, 64),
            layers_per_block=1,
            scaling_factor=0.476986,
            spatial_compression_ratio=8,
            sample_size=128,
        ),
        text_encoder=make_qwen2_5_vl(num_hidden_layers=4),
        tokenizer=make_letter_tokenizer(),
        text_encoder_2=make_t5_encoder(),
        tokenizer_2=make_t5_tokenizer(),
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            guidance_embeds=False,
            text_embed_dim=TEXT_SIZE,
            text_embed_2_dim=T5_SIZE,
            rope_axes_dim=(4, 4),
        ),
    )
    # enough for the 178 tokens of the template; a run with the 1,000 and 128 of the class takes seconds
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 200, 16
    return pipe


def _glm_image() -> GlmImagePipeline:
    return GlmImagePipeline(
        tokenizer=None,
        processor=None,
        text_encoder=None,
        vision_language_encoder=None,
        vae=make_vae(latent_channels=4, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 1.5, 0.8, 1.2]),
        transformer=GlmImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=TEXT_SIZE,
            time_embed_dim=8,
            condition_dim=4,
            prior_vq_quantizer_codebook_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
    )


def _prior_tokens(prompts: list[str]) -> dict[str, Any]:
    """What GLM would have written: one token for each 2 x 2 latents."""
    return {
        "prompt_embeds": embedded(prompts, 8, TEXT_SIZE),
        "prior_token_ids": (embedded(prompts, 16).abs() * 5).long().clamp(max=15),
    }


def _dreamlite_components() -> dict[str, Any]:
    return {
        "text_encoder": make_qwen3_vl(Qwen3VLForConditionalGeneration),
        "tokenizer": make_letter_tokenizer(),
        "processor": None,
        "vae": AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
            latent_channels=4,
        ),
        "unet": DreamLiteUNetModel(
            sample_size=8,
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            block_out_channels=(16, 32),
            cross_attention_dim=TEXT_SIZE,
            attention_head_dim=8,
            layers_per_block=1,
            norm_num_groups=8,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _dreamlite() -> DreamLitePipeline:
    return DreamLitePipeline(**_dreamlite_components())


def _dreamlite_mobile() -> DreamLiteMobilePipeline:
    return DreamLiteMobilePipeline(**_dreamlite_components())


def _single_text(prompts: list[str]) -> dict[str, Any]:
    """DreamLite takes a string, not a list."""
    return {"prompt": prompts[0] if len(prompts) == 1 else prompts}


MIXED = {
    "HiDreamImagePipeline": Family(_hidream, _SMALL | {"max_sequence_length": 40}),
    "ZImagePipeline": Family(_z_image, _SMALL | {"max_sequence_length": 64, "guidance_scale": 3.0}),
    "ZImageControlNetPipeline": Family(
        _z_image_controlnet, _SMALL | {"control_image": CONTROL, "max_sequence_length": 64, "guidance_scale": 3.0}
    ),
    "HunyuanImagePipeline": Family(_hunyuan_image, _SMALL),
    "GlmImagePipeline": Family(_glm_image, _SMALL | {"guidance_scale": 1.0}, _prior_tokens),
    "DreamLitePipeline": Family(_dreamlite, _SMALL | {"max_sequence_length": 160}, _single_text),
    "DreamLiteMobilePipeline": Family(_dreamlite_mobile, _SMALL | {"max_sequence_length": 160}, _single_text),
}
