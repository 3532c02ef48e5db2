"""Tiny pipelines whose denoiser is a transformer: Stable Diffusion 3, PixArt-Sigma and Flux."""

from __future__ import annotations

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SchedulerMixin,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from fk_reward.pipelines import FlowMatchSDEScheduler
from tests.tiny.components import (
    HIDDEN_SIZE,
    T5_SIZE,
    make_clip_text_model,
    make_projected_clip_text_model,
    make_t5_encoder,
    make_vae,
)
from tests.tiny.tokenizers import make_clip_tokenizer, make_t5_tokenizer


def _make_sd3_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=T5_SIZE,
        pooled_projection_dim=2 * HIDDEN_SIZE,
        pos_embed_max_size=16,
    ).eval()


def make_sd3(*, scheduler: SchedulerMixin | None = None, seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with stochastic flow matching; its VAE has a shift and no quantisation layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusion3Pipeline(
            transformer=_make_sd3_transformer(),
            scheduler=scheduler or FlowMatchSDEScheduler(shift=3.0),
            vae=make_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=make_projected_clip_text_model(),
            tokenizer=make_clip_tokenizer(),
            text_encoder_2=make_projected_clip_text_model(),
            tokenizer_2=make_clip_tokenizer(),
            text_encoder_3=make_t5_encoder(),
            tokenizer_3=make_t5_tokenizer(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _make_pixart_transformer() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=T5_SIZE,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    ).eval()


def make_pixart(*, scheduler: SchedulerMixin | None = None, seed: int = 0) -> PixArtSigmaPipeline:
    """PixArt-Sigma, whose transformer also predicts a variance, with SDE-DPM-Solver++.

    Call it with `use_resolution_binning=False` (the bins of the real model begin at 256 pixels) and
    `clean_caption=False` (cleaning needs more libraries).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = PixArtSigmaPipeline(
            transformer=_make_pixart_transformer(),
            scheduler=scheduler or DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
            vae=make_vae(scaling_factor=0.13025),
            text_encoder=make_t5_encoder(),
            tokenizer=make_t5_tokenizer(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _make_flux_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_SIZE,
        pooled_projection_dim=HIDDEN_SIZE,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    ).eval()


def make_flux(*, scheduler: SchedulerMixin | None = None, seed: int = 0) -> FluxPipeline:
    """Flux with stochastic flow matching; its latents travel as packed 2 x 2 patches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FluxPipeline(
            transformer=_make_flux_transformer(),
            scheduler=scheduler or FlowMatchSDEScheduler(shift=3.0),
            vae=make_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=make_clip_text_model(),
            tokenizer=make_clip_tokenizer(),
            text_encoder_2=make_t5_encoder(),
            tokenizer_2=make_t5_tokenizer(),
        )
    pipe.default_sample_size = 8  # Flux has no such field in its configuration; 128 is its default
    pipe.set_progress_bar_config(disable=True)
    return pipe
