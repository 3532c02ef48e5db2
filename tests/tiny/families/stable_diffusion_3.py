"""Stable Diffusion 3, AuraFlow, PixArt, Lumina and CogView: transformers on plain latents."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from transformers import GlmConfig, GlmModel, UMT5Config, UMT5EncoderModel

from tests.tiny.components import HIDDEN_SIZE, T5_SIZE, make_encoder_certain, make_t5_encoder, make_vae
from tests.tiny.families.family import Family
from tests.tiny.families.flux import CONTROL, make_flux_vae
from tests.tiny.language_models import TEXT_SIZE, TEXT_SIZES, make_gemma2, make_letter_tokenizer
from tests.tiny.tokenizers import make_t5_tokenizer
from tests.tiny.transformers_family import make_pixart, make_sd3

_SMALL = {"height": 64, "width": 64}


def sd3_components() -> dict[str, Any]:
    """The parts of Stable Diffusion 3, with the deterministic sampler that its repositories state."""
    return dict(make_sd3(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).components)


def _sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(**sd3_components())


def _sd3_pag() -> StableDiffusion3PAGPipeline:
    components = {
        name: value for name, value in sd3_components().items() if name not in ("image_encoder", "feature_extractor")
    }
    return StableDiffusion3PAGPipeline(**components, pag_applied_layers=["blocks.0"])


def _sd3_controlnet() -> StableDiffusion3ControlNetPipeline:
    controlnet = SD3ControlNetModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=T5_SIZE,
        caption_projection_dim=32,
        pooled_projection_dim=2 * HIDDEN_SIZE,
        pos_embed_max_size=16,
    )
    components = sd3_components()
    make_encoder_certain(components["vae"])
    return StableDiffusion3ControlNetPipeline(**components, controlnet=controlnet)


def _aura_flow() -> AuraFlowPipeline:
    config = UMT5Config(
        vocab_size=len(make_t5_tokenizer()),
        d_model=T5_SIZE,
        d_kv=8,
        d_ff=2 * HIDDEN_SIZE,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    return AuraFlowPipeline(
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=T5_SIZE,
            out_channels=4,
            pos_embed_max_size=64,
        ),
        vae=make_vae(scaling_factor=0.13025),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        text_encoder=UMT5EncoderModel(config),
        tokenizer=make_t5_tokenizer(),
    )


def _pixart_components() -> dict[str, Any]:
    return dict(make_pixart(scheduler=DPMSolverMultistepScheduler()).components)


def _pixart_sigma() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(**_pixart_components())


def _pixart_alpha() -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(**_pixart_components())


def _pixart_pag() -> PixArtSigmaPAGPipeline:
    return PixArtSigmaPAGPipeline(**_pixart_components(), pag_applied_layers=["blocks.1"])


def _cogview3() -> CogView3PlusPipeline:
    return CogView3PlusPipeline(
        transformer=CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=T5_SIZE,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        vae=make_vae(scaling_factor=0.13025),
        scheduler=CogVideoXDDIMScheduler(
            beta_end=0.012, prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=4.0
        ),
        text_encoder=make_t5_encoder(),
        tokenizer=make_t5_tokenizer(),
    )


def _cogview4_components(*, in_channels: int = 4) -> dict[str, Any]:
    return {
        "transformer": CogView4Transformer2DModel(
            patch_size=2,
            in_channels=in_channels,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=4,
            out_channels=4,
            text_embed_dim=TEXT_SIZE,
            time_embed_dim=8,
            condition_dim=4,
        ),
        "vae": make_vae(scaling_factor=0.13025),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
        ),
        "text_encoder": GlmModel(GlmConfig(**TEXT_SIZES)),
        "tokenizer": make_letter_tokenizer(bos=True),
    }


def _cogview4() -> CogView4Pipeline:
    return CogView4Pipeline(**_cogview4_components())


def _cogview4_control() -> CogView4ControlPipeline:
    components = _cogview4_components(in_channels=8)
    make_encoder_certain(components["vae"])
    return CogView4ControlPipeline(**components)


def _lumina() -> LuminaPipeline:
    return LuminaPipeline(
        transformer=LuminaNextDiT2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            scaling_factor=1.0,
            cross_attention_dim=TEXT_SIZE,
        ),
        vae=make_vae(scaling_factor=0.13025),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=make_gemma2(),
        tokenizer=make_letter_tokenizer(bos=True),
    )


def _lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            scaling_factor=1.0,
            axes_dim_rope=[4, 2, 2],
            axes_lens=[512, 64, 64],
            cap_feat_dim=TEXT_SIZE,
        ),
        vae=make_flux_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=make_gemma2(),
        tokenizer=make_letter_tokenizer(bos=True),
    )


_PIXART_CALL = {"use_resolution_binning": False, "clean_caption": False}
STABLE_DIFFUSION_3 = {
    "StableDiffusion3Pipeline": Family(_sd3, _SMALL),
    "StableDiffusion3PAGPipeline": Family(_sd3_pag, _SMALL),
    "StableDiffusion3ControlNetPipeline": Family(_sd3_controlnet, _SMALL | {"control_image": CONTROL}),
    "AuraFlowPipeline": Family(_aura_flow, _SMALL | {"max_sequence_length": 40}),
    "PixArtAlphaPipeline": Family(_pixart_alpha, _PIXART_CALL),
    "PixArtSigmaPipeline": Family(_pixart_sigma, _PIXART_CALL),
    "PixArtSigmaPAGPipeline": Family(_pixart_pag, _PIXART_CALL),
    "CogView3PlusPipeline": Family(_cogview3, _SMALL | {"max_sequence_length": 40}),
    "CogView4Pipeline": Family(_cogview4, _SMALL | {"max_sequence_length": 48}),
    "CogView4ControlPipeline": Family(
        _cogview4_control, _SMALL | {"control_image": CONTROL, "max_sequence_length": 48}
    ),
    "LuminaPipeline": Family(_lumina, _SMALL | {"clean_caption": False, "max_sequence_length": 64}),
    "Lumina2Pipeline": Family(_lumina2, _SMALL | {"system_prompt": "draw"}),
}
