"""DeepFloyd IF, and what Diffusers keeps for its history: Wuerstchen, Kandinsky 2.1, aMUSEd, unCLIP, LDM."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    IFPipeline,
    KandinskyCombinedPipeline,
    LDMTextToImagePipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UVit2DModel,
    VQModel,
    WuerstchenCombinedPipeline,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from tests.tiny.components import HIDDEN_SIZE, make_clip_text_model, make_projected_clip_text_model, make_vae
from tests.tiny.families.family import Family
from tests.tiny.families.kandinsky import (
    make_clip_image_encoder,
    make_image_processor,
    make_kandinsky_prior,
    make_movq,
    make_prior_scheduler,
)
from tests.tiny.language_models import VOCABULARY, make_bert, make_letter_tokenizer
from tests.tiny.latent_diffusion import SD_BETAS, make_unet
from tests.tiny.pixel_space import make_if
from tests.tiny.tokenizers import make_clip_tokenizer

_SMALL = {"height": 64, "width": 64}


def _if() -> IFPipeline:
    return make_if()


def _wuerstchen() -> WuerstchenCombinedPipeline:
    return WuerstchenCombinedPipeline(
        tokenizer=make_clip_tokenizer(),
        text_encoder=make_clip_text_model(),
        decoder=WuerstchenDiffNeXt(
            c_cond=HIDDEN_SIZE,
            c_hidden=[32],
            nhead=[-1],
            blocks=[1],
            level_config=["CT"],
            clip_embd=HIDDEN_SIZE,
            inject_effnet=[False],
        ),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=16),
        prior_tokenizer=make_clip_tokenizer(),
        prior_text_encoder=make_clip_text_model(),
        prior_prior=WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=HIDDEN_SIZE, c_r=8, nhead=2),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


def _kandinsky_combined() -> KandinskyCombinedPipeline:
    text_encoder = MultilingualCLIP(
        MCLIPConfig(
            numDims=HIDDEN_SIZE,
            transformerDimensions=HIDDEN_SIZE,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=HIDDEN_SIZE,
            num_attention_heads=4,
            num_hidden_layers=1,
            vocab_size=len(VOCABULARY),
            max_position_embeddings=128,
        )
    )
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="text_image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        encoder_hid_dim=HIDDEN_SIZE,
        encoder_hid_dim_type="text_image_proj",
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    return KandinskyCombinedPipeline(
        text_encoder=text_encoder,
        tokenizer=make_letter_tokenizer(bos=True, max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False),
        movq=make_movq(),
        prior_prior=make_kandinsky_prior(),
        prior_image_encoder=make_clip_image_encoder(),
        prior_text_encoder=make_projected_clip_text_model(),
        prior_tokenizer=make_clip_tokenizer(),
        prior_scheduler=make_prior_scheduler(),
        prior_image_processor=make_image_processor(),
    )


def _amused() -> AmusedPipeline:
    return AmusedPipeline(
        vqvae=VQModel(
            block_out_channels=[8],
            latent_channels=8,
            norm_num_groups=8,
            num_vq_embeddings=8,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ),
        tokenizer=make_clip_tokenizer(),
        text_encoder=make_projected_clip_text_model(),
        transformer=UVit2DModel(
            hidden_size=16,
            cond_embed_dim=HIDDEN_SIZE,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=HIDDEN_SIZE,
            vocab_size=32,
            codebook_size=8,
            in_channels=8,
            block_out_channels=8,
            num_res_blocks=1,
            downsample=True,
            upsample=True,
            block_num_heads=1,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        ),
        scheduler=AmusedScheduler(mask_token_id=31),
    )


def _unclip() -> UnCLIPPipeline:
    decoder = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    steps = UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon")
    sizes: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "in_channels": 6,
        "out_channels": 3,
    }
    return UnCLIPPipeline(
        prior=make_kandinsky_prior(),
        decoder=decoder,
        text_encoder=make_projected_clip_text_model(),
        tokenizer=make_clip_tokenizer(),
        text_proj=UnCLIPTextProjModel(
            clip_embeddings_dim=HIDDEN_SIZE, time_embed_dim=64, cross_attention_dim=HIDDEN_SIZE
        ),
        super_res_first=UNet2DModel(**sizes),
        super_res_last=UNet2DModel(**sizes),
        prior_scheduler=make_prior_scheduler(),
        decoder_scheduler=steps,
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    )


def _ldm() -> LDMTextToImagePipeline:
    return LDMTextToImagePipeline(
        vqvae=make_vae(),
        bert=make_bert(),
        tokenizer=make_letter_tokenizer(max_length=77),
        unet=make_unet(cross_attention_dim=16, attention_head_dim=2),
        scheduler=DDIMScheduler(**SD_BETAS, clip_sample=False),
    )


OLDER = {
    "IFPipeline": Family(_if, {"clean_caption": False}),
    "WuerstchenCombinedPipeline": Family(_wuerstchen, {"height": 128, "width": 128, "prior_num_inference_steps": 2}),
    "KandinskyCombinedPipeline": Family(_kandinsky_combined, _SMALL | {"prior_num_inference_steps": 2}),
    "AmusedPipeline": Family(_amused, {"height": 8, "width": 8}, one_generator=True),
    "UnCLIPPipeline": Family(_unclip, {"prior_num_inference_steps": 2, "super_res_num_inference_steps": 2}),
    "LDMTextToImagePipeline": Family(_ldm, _SMALL),
}
