"""SDXL and its variants."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ControlNetUnionModel,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLControlNetXSPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)

from tests.tiny.components import HIDDEN_SIZE
from tests.tiny.families.family import Family
from tests.tiny.families.flux import CONTROL
from tests.tiny.families.stable_diffusion import (
    ATTENTION_FIRST,
    make_adapter,
    make_controlnet,
    make_controlnet_xs,
    with_image_each,
)
from tests.tiny.latent_diffusion import make_sdxl, make_sdxl_unet

_CONTROLNET_SIZES: dict[str, Any] = {
    "cross_attention_dim": 2 * HIDDEN_SIZE,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "projection_class_embeddings_input_dim": 6 * 8 + HIDDEN_SIZE,
}


def sdxl_components(**options: Any) -> dict[str, Any]:
    """The parts of SDXL, with Euler."""
    return {**make_sdxl().components, **options}


def _without_image_encoder(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in sdxl_components(**options).items() if name != "image_encoder"}


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(**sdxl_components(), add_watermarker=False)


def _pag() -> StableDiffusionXLPAGPipeline:
    return StableDiffusionXLPAGPipeline(**sdxl_components(), add_watermarker=False, pag_applied_layers=["mid"])


def _controlnet() -> StableDiffusionXLControlNetPipeline:
    controlnet = make_controlnet(**_CONTROLNET_SIZES)
    return StableDiffusionXLControlNetPipeline(**sdxl_components(), controlnet=controlnet, add_watermarker=False)


def _controlnet_pag() -> StableDiffusionXLControlNetPAGPipeline:
    return StableDiffusionXLControlNetPAGPipeline(
        **sdxl_components(),
        controlnet=make_controlnet(**_CONTROLNET_SIZES),
        add_watermarker=False,
        pag_applied_layers=["mid"],
    )


def _controlnet_union() -> StableDiffusionXLControlNetUnionPipeline:
    controlnet = ControlNetUnionModel(
        **_CONTROLNET_SIZES,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        norm_num_groups=8,
        conditioning_embedding_out_channels=(4, 4, 4, 4),
        num_trans_channel=16,
        num_proj_channel=16,
        num_trans_head=2,
        num_control_type=2,
    )
    return StableDiffusionXLControlNetUnionPipeline(**sdxl_components(), controlnet=controlnet, add_watermarker=False)


def _controlnet_xs() -> StableDiffusionXLControlNetXSPipeline:
    unet = make_sdxl_unet(layers_per_block=2)
    return StableDiffusionXLControlNetXSPipeline(
        **_without_image_encoder(unet=unet), controlnet=make_controlnet_xs(unet), add_watermarker=False
    )


def _adapter() -> StableDiffusionXLAdapterPipeline:
    unet = make_sdxl_unet(**ATTENTION_FIRST)
    return StableDiffusionXLAdapterPipeline(**sdxl_components(unet=unet), adapter=make_adapter())


_SMALL = {"height": 64, "width": 64}
_CONTROLLED = {"image": CONTROL}
STABLE_DIFFUSION_XL = {
    "StableDiffusionXLPipeline": Family(_sdxl),
    "StableDiffusionXLPAGPipeline": Family(_pag),
    "StableDiffusionXLControlNetPipeline": Family(_controlnet, _CONTROLLED),
    "StableDiffusionXLControlNetPAGPipeline": Family(_controlnet_pag, _CONTROLLED),
    "StableDiffusionXLControlNetUnionPipeline": Family(
        _controlnet_union, {"control_image": [CONTROL], "control_mode": [0]}
    ),
    "StableDiffusionXLControlNetXSPipeline": Family(_controlnet_xs, _CONTROLLED),
    "StableDiffusionXLAdapterPipeline": Family(_adapter, _SMALL, with_image_each),
}
