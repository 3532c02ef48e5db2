"""Stable Cascade, which draws an image embedding first and decodes it with a second diffusion."""

from __future__ import annotations

from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

from tests.tiny.components import HIDDEN_SIZE, make_projected_clip_text_model
from tests.tiny.families.family import Family
from tests.tiny.tokenizers import make_clip_tokenizer

_BLOCK = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
EMBEDDING_CHANNELS = 4


def make_cascade_prior() -> StableCascadeUNet:
    """Draws embeddings of 4 channels."""
    return StableCascadeUNet(
        in_channels=EMBEDDING_CHANNELS,
        out_channels=EMBEDDING_CHANNELS,
        conditioning_dim=32,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=HIDDEN_SIZE,
        clip_text_in_channels=HIDDEN_SIZE,
        clip_text_pooled_in_channels=HIDDEN_SIZE,
        dropout=(0.0, 0.0),
    )


def make_cascade_decoder() -> StableCascadeUNet:
    """Draws the latents of the VQ-GAN from an embedding."""
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(_BLOCK, (*_BLOCK, "SDCascadeAttnBlock")),
        switch_level=None,
        clip_text_pooled_in_channels=HIDDEN_SIZE,
        effnet_in_channels=EMBEDDING_CHANNELS,
        dropout=(0.0, 0.0),
    )


def _vqgan() -> PaellaVQModel:
    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=16)


def _prior() -> StableCascadePriorPipeline:
    return StableCascadePriorPipeline(
        tokenizer=make_clip_tokenizer(),
        text_encoder=make_projected_clip_text_model(),
        prior=make_cascade_prior(),
        scheduler=DDPMWuerstchenScheduler(),
        resolution_multiple=16.0,
    )


def _combined() -> StableCascadeCombinedPipeline:
    return StableCascadeCombinedPipeline(
        tokenizer=make_clip_tokenizer(),
        text_encoder=make_projected_clip_text_model(),
        decoder=make_cascade_decoder(),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=_vqgan(),
        prior_prior=make_cascade_prior(),
        prior_text_encoder=make_projected_clip_text_model(),
        prior_tokenizer=make_clip_tokenizer(),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


CASCADE = {
    "StableCascadePriorPipeline": Family(_prior, {"height": 64, "width": 64}),
    "StableCascadeCombinedPipeline": Family(
        _combined, {"height": 128, "width": 128, "prior_num_inference_steps": 2, "decoder_guidance_scale": 2.0}
    ),
}
