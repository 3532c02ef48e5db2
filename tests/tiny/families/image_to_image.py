"""Pipelines that begin at an image, or fill a part of one: they run fewer steps than were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    KandinskyV22Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from tests.tiny.components import HIDDEN_SIZE, make_encoder_certain
from tests.tiny.families.family import Family, embedded
from tests.tiny.families.flux import CONTROL, flux_components
from tests.tiny.families.kandinsky import make_kandinsky_v22_unet, make_movq
from tests.tiny.families.stable_diffusion import sd_components
from tests.tiny.families.stable_diffusion_xl import sdxl_components


def _certain(components: dict[str, Any]) -> dict[str, Any]:
    make_encoder_certain(components["vae"])
    return components


def _sd() -> StableDiffusionImg2ImgPipeline:
    return StableDiffusionImg2ImgPipeline(**_certain(sd_components()))


def _sd_inpaint() -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(**_certain(sd_components()))


def _sdxl() -> StableDiffusionXLImg2ImgPipeline:
    return StableDiffusionXLImg2ImgPipeline(**_certain(sdxl_components()), add_watermarker=False)


def _sdxl_inpaint() -> StableDiffusionXLInpaintPipeline:
    return StableDiffusionXLInpaintPipeline(**_certain(sdxl_components()), add_watermarker=False)


def _flux() -> FluxImg2ImgPipeline:
    return FluxImg2ImgPipeline(**_certain(flux_components()))


def _flux_inpaint() -> FluxInpaintPipeline:
    return FluxInpaintPipeline(**_certain(flux_components()))


def _flux_fill() -> FluxFillPipeline:
    channels = 16 + 16 + 4 * 64  # noise, masked image, mask of 8 x 8 pixels a latent in 2 x 2 patches
    return FluxFillPipeline(**_certain(flux_components(in_channels=channels, out_channels=16)))


def _kandinsky_v22() -> KandinskyV22Pipeline:
    return KandinskyV22Pipeline(
        unet=make_kandinsky_v22_unet(),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False),
        movq=make_movq(),
    )


def _image_embeddings(prompts: list[str]) -> dict[str, Any]:
    nothing = ["nothing"] * len(prompts)
    return {
        "image_embeds": embedded(prompts, HIDDEN_SIZE),
        "negative_image_embeds": embedded(nothing, HIDDEN_SIZE),
    }


def _from_image(make: Callable[[], DiffusionPipeline], arguments: dict[str, Any]) -> Family:
    return Family(make, {"image": CONTROL, **arguments}, encodes=True)


_SMALL = {"height": 64, "width": 64}
_MASK = {"mask_image": (torch.arange(64) < 32).float().expand(1, 1, 64, 64)}
_START = {"strength": 0.7}
IMAGE_TO_IMAGE = {
    "StableDiffusionImg2ImgPipeline": _from_image(_sd, _START),
    "StableDiffusionInpaintPipeline": _from_image(_sd_inpaint, _START | _MASK | _SMALL),
    "StableDiffusionXLImg2ImgPipeline": _from_image(_sdxl, _START),
    "StableDiffusionXLInpaintPipeline": _from_image(_sdxl_inpaint, _START | _MASK | _SMALL),
    "FluxImg2ImgPipeline": _from_image(_flux, _START | _SMALL),
    "FluxInpaintPipeline": _from_image(_flux_inpaint, _START | _MASK | _SMALL),
    "FluxFillPipeline": _from_image(_flux_fill, _MASK | _SMALL),
    "KandinskyV22Pipeline": Family(_kandinsky_v22, _SMALL, _image_embeddings),
}
