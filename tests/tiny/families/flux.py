"""Flux and its relatives: latents that travel as packed 2 x 2 patches."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    VisualClozePipeline,
)
from PIL import Image

from tests.tiny.components import HIDDEN_SIZE, T5_SIZE, make_clip_text_model, make_t5_encoder, make_vae
from tests.tiny.families.family import Family, with_negative
from tests.tiny.language_models import TEXT_SIZE, make_letter_tokenizer, make_qwen2_5_vl, make_qwen3
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


def _chroma() -> ChromaPipeline:
    sizes = {name: size for name, size in _SIZES.items() if name != "pooled_projection_dim"}
    components = {name: value for name, value in flux_components().items() if not name.endswith("_2")}
    return ChromaPipeline(
        **components
        | {
            "transformer": ChromaTransformer2DModel(
                **sizes, approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1
            ),
            "text_encoder": make_t5_encoder(),
            "tokenizer": make_t5_tokenizer(),
        }
    )


def _ovis() -> OvisImagePipeline:
    sizes = {name: size for name, size in _SIZES.items() if name != "pooled_projection_dim"}
    return OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flux_vae(),
        text_encoder=make_qwen3(),
        tokenizer=make_letter_tokenizer(),
        transformer=OvisImageTransformer2DModel(**sizes | {"joint_attention_dim": TEXT_SIZE, "out_channels": 16}),
    )


def _longcat() -> LongCatImagePipeline:
    sizes = _SIZES | {"joint_attention_dim": TEXT_SIZE, "pooled_projection_dim": TEXT_SIZE, "in_channels": 64}
    return LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=make_flux_vae(latent_channels=16),  # the pipeline does not ask the autoencoder
        text_encoder=make_qwen2_5_vl(),
        tokenizer=make_letter_tokenizer(),
        text_processor=None,
        transformer=LongCatImageTransformer2DModel(**sizes),
    )


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
    "ChromaPipeline": Family(_chroma, _SMALL | {"max_sequence_length": 40}),
    "OvisImagePipeline": Family(_ovis, _SMALL),
    "LongCatImagePipeline": Family(_longcat, _SMALL | {"enable_prompt_rewrite": False}, with_negative),
    "VisualClozePipeline": Family(
        _visual_cloze,
        {"upsampling_height": 64, "upsampling_width": 64, "upsampling_strength": 0.5},
        _task,
        one_generator=True,  # it takes a list, and draws the noise of one image with the generator of another
    ),
}
