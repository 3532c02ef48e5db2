"""A random AutoencoderTiny, as the published tiny decoders are but for its width."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny


def make_tiny_autoencoder(*, latent_channels: int = 4, seed: int = 0, **options: object) -> AutoencoderTiny:
    """Decodes 8 x 8 latents to 64 x 64 pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            latent_channels=latent_channels,
            **options,
        )
    return autoencoder.eval()
