"""Kandinsky 2.2, 3 and 5."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    KandinskyV22CombinedPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.tiny.components import (
    HIDDEN_SIZE,
    T5_SIZE,
    make_clip_text_model,
    make_projected_clip_text_model,
    make_t5_encoder,
    make_vae,
)
from tests.tiny.families.family import Family
from tests.tiny.language_models import TEXT_SIZE, make_letter_tokenizer, make_qwen2_5_vl
from tests.tiny.tokenizers import make_clip_tokenizer, make_t5_tokenizer


def make_movq() -> VQModel:
    """The decoder of Kandinsky 2 and 3, whose norms read the latents; 8 pixels a latent."""
    return VQModel(
        block_out_channels=(32,) * 4,  # its norms have 32 groups
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def make_kandinsky_prior() -> PriorTransformer:
    """The prior of Kandinsky 2 with unit spread of its embeddings."""
    prior = PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=HIDDEN_SIZE, num_layers=1)
    prior.clip_std = torch.nn.Parameter(torch.ones_like(prior.clip_std))
    return prior


def make_prior_scheduler() -> UnCLIPScheduler:
    """The scheduler of the prior."""
    return UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
    )


def make_clip_image_encoder(*, image_size: int = 32) -> CLIPVisionModelWithProjection:
    """A CLIP image tower."""
    config = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE,
        projection_dim=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_attention_heads=4,
        num_hidden_layers=1,
        image_size=image_size,
        patch_size=16,
    )
    return CLIPVisionModelWithProjection(config)


def make_kandinsky_v22_unet() -> UNet2DConditionModel:
    """A UNet that reads an image embedding and predicts a variance."""
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        encoder_hid_dim=HIDDEN_SIZE,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )


def make_image_processor() -> object:
    """The pixels of a CLIP image tower of 32 x 32."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _kandinsky_v22_combined() -> KandinskyV22CombinedPipeline:
    return KandinskyV22CombinedPipeline(
        unet=make_kandinsky_v22_unet(),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False),
        movq=make_movq(),
        prior_prior=make_kandinsky_prior(),
        prior_image_encoder=make_clip_image_encoder(),
        prior_text_encoder=make_projected_clip_text_model(),
        prior_tokenizer=make_clip_tokenizer(),
        prior_scheduler=make_prior_scheduler(),
        prior_image_processor=make_image_processor(),
    )


def _kandinsky3() -> Kandinsky3Pipeline:
    return Kandinsky3Pipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=make_t5_encoder(),
        unet=Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(16, 32),
            cross_attention_dim=4,
            encoder_hid_dim=T5_SIZE,
        ),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True),
        movq=make_movq(),
    )


def _kandinsky5() -> Kandinsky5T2IPipeline:
    pipe = Kandinsky5T2IPipeline(
        transformer=Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=TEXT_SIZE,
            in_text_dim2=HIDDEN_SIZE,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(1, 1, 2),
            visual_cond=False,
            attention_type="regular",
        ),
        vae=make_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=make_qwen2_5_vl(),
        tokenizer=make_letter_tokenizer(),
        text_encoder_2=make_clip_text_model(),
        tokenizer_2=make_clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipe.resolutions = [(64, 64)]
    return pipe


KANDINSKY = {
    "KandinskyV22CombinedPipeline": Family(
        _kandinsky_v22_combined, {"height": 64, "width": 64, "prior_num_inference_steps": 2}
    ),
    "Kandinsky3Pipeline": Family(_kandinsky3, {"height": 64, "width": 64}),
    "Kandinsky5T2IPipeline": Family(_kandinsky5, {"height": 64, "width": 64, "max_sequence_length": 400}),
}
