"""Bria 3.2 and Bria FIBO."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLWan,
    BriaFiboPipeline,
    BriaPipeline,
    BriaTransformer2DModel,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.transformers.transformer_bria_fibo import BriaFiboTransformer2DModel
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from tests.tiny.components import T5_SIZE, make_t5_encoder, make_vae
from tests.tiny.families.family import Family, with_negative
from tests.tiny.language_models import TEXT_SIZE, VOCABULARY, make_letter_tokenizer
from tests.tiny.tokenizers import make_t5_tokenizer


def make_wan_vae() -> AutoencoderKLWan:
    """The autoencoder of Wan 2.2: 16 pixels a latent, two of which are packed into its channels."""
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        temperal_downsample=[False, True, True],
        z_dim=16,
    )


def _bria_fibo() -> BriaFiboPipeline:
    config = SmolLM3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=TEXT_SIZE,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return BriaFiboPipeline(
        transformer=BriaFiboTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_SIZE,
            text_encoder_dim=TEXT_SIZE,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        vae=make_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=SmolLM3ForCausalLM(config),
        tokenizer=make_letter_tokenizer(),
    )


def _bria() -> BriaPipeline:
    return BriaPipeline(
        transformer=BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=T5_SIZE,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        vae=make_vae(scaling_factor=0.13025),
        scheduler=EulerAncestralDiscreteScheduler(),
        text_encoder=make_t5_encoder(),
        tokenizer=make_t5_tokenizer(),
    )


BRIA = {
    # an empty negative prompt is a token id of the published vocabulary
    "BriaFiboPipeline": Family(_bria_fibo, {"height": 64, "width": 64}, with_negative),
    "BriaPipeline": Family(_bria, {"height": 64, "width": 64}),
}
