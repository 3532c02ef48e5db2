"""FLUX.2, Ernie Image, Ideogram 4 and Bria FIBO 2: an autoencoder that whitens its packed latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)

from tests.tiny.families.family import Family, embedded, mask_of
from tests.tiny.language_models import TEXT_SIZE, make_letter_tokenizer, make_qwen3, make_qwen3_vl

PACKED_CHANNELS = 16


def make_flux2_vae() -> AutoencoderKLFlux2:
    """8 pixels a latent of 4 channels; the statistics of its packed latents are not those of a fresh one."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), latent_channels=PACKED_CHANNELS // 4, norm_num_groups=4, layers_per_block=1
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, PACKED_CHANNELS))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, PACKED_CHANNELS))
    return vae


def _transformer(**options: Any) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=PACKED_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_SIZE,
        axes_dims_rope=(4, 4, 4, 4),
        **options,
    )


def _flux2() -> Flux2Pipeline:
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flux2_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=_transformer(),
    )


def _klein_components() -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": make_flux2_vae(),
        "text_encoder": make_qwen3(),
        "tokenizer": make_letter_tokenizer(),
        "transformer": _transformer(guidance_embeds=False),
    }


def _klein() -> Flux2KleinPipeline:
    return Flux2KleinPipeline(**_klein_components())


def _klein_kv() -> Flux2KleinKVPipeline:
    return Flux2KleinKVPipeline(**_klein_components())


def _ernie() -> ErnieImagePipeline:
    return ErnieImagePipeline(
        transformer=ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=PACKED_CHANNELS,
            out_channels=PACKED_CHANNELS,
            text_in_dim=TEXT_SIZE,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=make_flux2_vae(),
        text_encoder=make_qwen3(),
        tokenizer=make_letter_tokenizer(bos=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _ideogram4() -> Ideogram4Pipeline:
    layers = 36  # the text features are those of fixed layers of Qwen3-VL

    def transformer() -> Ideogram4Transformer2DModel:
        return Ideogram4Transformer2DModel(
            in_channels=PACKED_CHANNELS,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=13 * TEXT_SIZE,
            mrope_section=(4, 2, 2),
        )

    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_flux2_vae(),
        text_encoder=make_qwen3_vl(num_hidden_layers=layers),
        tokenizer=make_letter_tokenizer(),
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )


def _bria_fibo2() -> BriaFibo2Pipeline:
    return BriaFibo2Pipeline(
        transformer=BriaFibo2Transformer2DModel(
            in_channels=PACKED_CHANNELS // 4,
            patch_size=2,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=TEXT_SIZE,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            gist_min_text_len=4,
            gist_max_text_len=16,
            axes_dims=(4, 6, 6),
            axes_lens=(32, 16, 16),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_flux2_vae(),
        text_encoder=None,
        processor=None,
    )


def _embeddings(prompts: list[str]) -> dict[str, Any]:
    return {"prompt_embeds": embedded(prompts, 8, TEXT_SIZE)}


def _layered_embeddings(prompts: list[str]) -> dict[str, Any]:
    """Of the first block and of each block of `injection_layer_ids`."""
    nothing = ["none"] * len(prompts)
    return {
        "prompt_embeds": embedded(prompts, 2, 8, TEXT_SIZE),
        "prompt_embeds_mask": mask_of(prompts, 8).bool(),
        "negative_prompt_embeds": embedded(nothing, 2, 8, TEXT_SIZE),
        "negative_prompt_embeds_mask": mask_of(nothing, 8).bool(),
    }


_SMALL = {"height": 64, "width": 64}
FLUX2 = {
    "Flux2Pipeline": Family(_flux2, _SMALL, _embeddings),
    "Flux2KleinPipeline": Family(_klein, _SMALL | {"max_sequence_length": 64, "text_encoder_out_layers": (1,)}),
    "Flux2KleinKVPipeline": Family(_klein_kv, _SMALL | {"max_sequence_length": 64, "text_encoder_out_layers": (1,)}),
    "ErnieImagePipeline": Family(_ernie, _SMALL),
    "Ideogram4Pipeline": Family(
        _ideogram4, _SMALL | {"max_sequence_length": 64, "guidance_scale": 3.0, "guidance_schedule": None}
    ),
    "BriaFibo2Pipeline": Family(_bria_fibo2, _SMALL, _layered_embeddings),
}
