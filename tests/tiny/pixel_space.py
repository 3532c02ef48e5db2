"""Tiny DeepFloyd IF: its UNet makes the images themselves, and learns the variance of its steps."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

from tests.tiny.components import T5_SIZE, make_t5_encoder
from tests.tiny.tokenizers import make_t5_tokenizer


def make_if(*, seed: int = 0) -> IFPipeline:
    """DeepFloyd IF's first stage with the scheduler settings of the public repositories."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=3,
            out_channels=6,
            block_out_channels=(8, 8, 16),  # the attention is between 16 x 16 pixels
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            cross_attention_dim=T5_SIZE,
            attention_head_dim=2,
        )
        pipe = IFPipeline(
            tokenizer=make_t5_tokenizer(),
            text_encoder=make_t5_encoder(),
            unet=unet.eval(),
            scheduler=DDPMScheduler(
                beta_schedule="squaredcos_cap_v2",
                variance_type="learned_range",
                thresholding=True,
                dynamic_thresholding_ratio=0.95,
                sample_max_value=1.5,
            ),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
