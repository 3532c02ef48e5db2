"""The small parts that the tiny pipelines share: text encoders and VAEs with fixed random weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.tiny.tokenizers import MAX_CLIP_TOKENS, make_clip_tokenizer, make_t5_tokenizer

HIDDEN_SIZE = 32
T5_SIZE = 2 * HIDDEN_SIZE  # Stable Diffusion 3 pads its two joined CLIP states to the width of T5


def _clip_config() -> CLIPTextConfig:
    tokenizer = make_clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        projection_dim=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=MAX_CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_clip_text_model() -> CLIPTextModel:
    """A CLIP text tower of two layers."""
    return CLIPTextModel(_clip_config()).eval()


def make_projected_clip_text_model() -> CLIPTextModelWithProjection:
    """A CLIP text tower with the projection that SDXL and SD3 pool."""
    return CLIPTextModelWithProjection(_clip_config()).eval()


def make_t5_encoder() -> T5EncoderModel:
    """A T5 encoder of two layers."""
    config = T5Config(
        vocab_size=len(make_t5_tokenizer()),
        d_model=T5_SIZE,
        d_kv=8,
        d_ff=2 * HIDDEN_SIZE,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5EncoderModel(config).eval()


def make_vae(*, latent_channels: int = 4, scaling_factor: float = 0.18215, **options: object) -> AutoencoderKL:
    """An autoencoder that maps 64 x 64 images to 8 x 8 latents."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
        **options,
    )
    return vae.eval()


def make_encoder_certain(vae: AutoencoderKL) -> None:
    """Let the encoder's posterior have no spread: some pipelines draw from it with the global generator."""
    with torch.no_grad():
        outputs = vae.quant_conv or vae.encoder.conv_out
        outputs.weight[vae.config.latent_channels :] = 0.0
        outputs.bias[vae.config.latent_channels :] = -30.0
