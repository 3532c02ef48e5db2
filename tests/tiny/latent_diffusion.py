"""Tiny Stable Diffusion and SDXL."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.tiny.components import (
    HIDDEN_SIZE,
    make_clip_text_model,
    make_projected_clip_text_model,
    make_vae,
)
from tests.tiny.tokenizers import make_clip_tokenizer

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_unet(**options: object) -> UNet2DConditionModel:
    """A UNet of two resolutions on 8 x 8 latents."""
    unet = UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
        }
        | options
    )
    return unet.eval()


def _sd_scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        **SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
    )


def make_sd(
    *, prediction_type: str = "epsilon", scheduler: SchedulerMixin | None = None, seed: int = 0
) -> StableDiffusionPipeline:
    """Stable Diffusion with DDIM; `prediction_type="v_prediction"` makes it a 2.x."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=make_vae(),
            text_encoder=make_clip_text_model(),
            tokenizer=make_clip_tokenizer(),
            unet=make_unet(cross_attention_dim=HIDDEN_SIZE, attention_head_dim=2),
            scheduler=scheduler or _sd_scheduler(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_sdxl_unet(**options: object) -> UNet2DConditionModel:
    """The UNet of SDXL, which also reads sizes and a pooled text embedding."""
    return make_unet(
        **{
            "cross_attention_dim": 2 * HIDDEN_SIZE,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 6 * 8 + HIDDEN_SIZE,
        }
        | options
    )


def make_sdxl(*, scheduler: SchedulerMixin | None = None, seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL with the deterministic Euler scheduler that the public repositories ship."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionXLPipeline(
            vae=make_vae(scaling_factor=0.13025),
            text_encoder=make_clip_text_model(),
            text_encoder_2=make_projected_clip_text_model(),
            tokenizer=make_clip_tokenizer(),
            tokenizer_2=make_clip_tokenizer(),
            unet=make_sdxl_unet(),
            scheduler=scheduler or EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
