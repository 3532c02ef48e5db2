"""Flux and its relatives: latents that travel as packed 2 x 2 patches."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    VisualClozePipeline,
)
from PIL import Image

from tests.tiny.components import HIDDEN_SIZE, T5_SIZE, make_clip_text_model, make_t5_encoder, make_vae
from tests.tiny.families.family import Family
from tests.tiny.tokenizers import make_clip_tokenizer, make_t5_tokenizer

_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": T5_SIZE,
    "pooled_projection_dim": HIDDEN_SIZE,
    "axes_dims_rope": (4, 4, 8),
}
CONTROL = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
"""A ramp of colours: the image that a ControlNet reads."""


def flux_components(**transformer_options: Any) -> dict[str, Any]:
    """The parts of Flux."""
    return {
        "transformer": FluxTransformer2DModel(**_SIZES | transformer_options),
        "vae": make_flux_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": make_clip_text_model(),
        "tokenizer": make_clip_tokenizer(),
        "text_encoder_2": make_t5_encoder(),
        "tokenizer_2": make_t5_tokenizer(),
    }


def make_flux_vae(*, latent_channels: int = 4) -> Any:
    """Has a shift, and no quantisation layers."""
    return make_vae(
        latent_channels=latent_channels,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _flux() -> FluxPipeline:
    return FluxPipeline(**flux_components())


def _flux_control() -> FluxControlPipeline:
    return FluxControlPipeline(**flux_components(in_channels=32, out_channels=16))


def _flux_controlnet() -> FluxControlNetPipeline:
    return FluxControlNetPipeline(**flux_components(), controlnet=FluxControlNetModel(**_SIZES))


def _visual_cloze() -> VisualClozePipeline:
    channels = 16 + 16 + 4 * 64  # noise, masked image, mask of 8 x 8 pixels a latent in 2 x 2 patches
    return VisualClozePipeline(**flux_components(in_channels=channels, out_channels=16), resolution=64)


def _task(prompts: list[str]) -> dict[str, Any]:
    example, query = Image.new("RGB", (64, 64), "gold"), Image.new("RGB", (64, 64), "navy")
    return {
        "task_prompt": ["from [IMAGE1] to [IMAGE2]"] * len(prompts),
        "content_prompt": list(prompts),
        "image": [[[example, example], [query, None]]] * len(prompts),
    }


_SMALL = {"height": 64, "width": 64}
FLUX = {
    "FluxPipeline": Family(_flux, _SMALL),
    "FluxControlPipeline": Family(_flux_control, {"control_image": CONTROL, **_SMALL}),
    "FluxControlNetPipeline": Family(_flux_controlnet, {"control_image": CONTROL}),
    "VisualClozePipeline": Family(
        _visual_cloze, {"upsampling_height": 64, "upsampling_width": 64, "upsampling_strength": 0.5}, _task
    ),
}
