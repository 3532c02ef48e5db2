"""Sana and PRX, on Gemma and a deep autoencoder, and PRX in pixels."""

from __future__ import annotations

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PRXPipeline,
    PRXTransformer2DModel,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from diffusers.pipelines.prx.pipeline_prx_pixel import PRXPixelPipeline

from tests.tiny.components import make_vae
from tests.tiny.families.family import Family, embedded, mask_of
from tests.tiny.families.flux import CONTROL
from tests.tiny.language_models import TEXT_SIZE, make_gemma2, make_letter_tokenizer, make_qwen3

_SANA_SIZES = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": TEXT_SIZE,
    "sample_size": 16,
}
_FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_SANA_CALL = {
    "height": 32,
    "width": 32,
    "max_sequence_length": 40,
    "complex_human_instruction": None,
    "use_resolution_binning": False,
    "clean_caption": False,
}


def make_dc_autoencoder() -> AutoencoderDC:
    """Sana's autoencoder; 2 pixels a latent."""
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


def _sana_components(**transformer_options: object) -> dict[str, object]:
    return {
        "transformer": SanaTransformer2DModel(**_SANA_SIZES | transformer_options),
        "vae": make_dc_autoencoder(),
        "scheduler": DPMSolverMultistepScheduler(**_FLOW_SOLVER),
        "text_encoder": make_gemma2(),
        "tokenizer": make_letter_tokenizer(bos=True),
    }


def _sana() -> SanaPipeline:
    return SanaPipeline(**_sana_components())


def _sana_pag() -> SanaPAGPipeline:
    return SanaPAGPipeline(**_sana_components(), pag_applied_layers=["blocks.0"])


def _sana_controlnet() -> SanaControlNetPipeline:
    sizes = {name: size for name, size in _SANA_SIZES.items() if name != "out_channels"}
    return SanaControlNetPipeline(**_sana_components(), controlnet=SanaControlNetModel(**sizes | {"num_layers": 1}))


def _sana_sprint() -> SanaSprintPipeline:
    components = _sana_components(qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return SanaSprintPipeline(**components | {"scheduler": SCMScheduler()})


def _prx_transformer(**options: object) -> PRXTransformer2DModel:
    return PRXTransformer2DModel(
        **{
            "patch_size": 2,
            "in_channels": 4,
            "context_in_dim": TEXT_SIZE,
            "hidden_size": 8,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "axes_dim": [2, 2],
        }
        | options
    )


def _prx() -> PRXPipeline:
    return PRXPipeline(
        transformer=_prx_transformer(),
        vae=make_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=make_gemma2(),
        tokenizer=make_letter_tokenizer(bos=True, max_length=64),
    )


def _prx_pixel() -> PRXPixelPipeline:
    return PRXPixelPipeline(
        transformer=_prx_transformer(in_channels=3, bottleneck_size=8, resolution_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=make_qwen3(),
        tokenizer=make_letter_tokenizer(max_length=64),
        prompt_max_tokens=8,
    )


def _prx_embeddings(prompts: list[str]) -> dict[str, object]:
    """The pipeline cleans texts with ftfy, which need not be there."""
    nothing = [""] * len(prompts)
    return {
        "prompt_embeds": embedded(prompts, 8, TEXT_SIZE),
        "prompt_attention_mask": mask_of(prompts, 8).bool(),
        "negative_prompt_embeds": embedded(nothing, 8, TEXT_SIZE),
        "negative_prompt_attention_mask": mask_of(["none"] * len(prompts), 8).bool(),
    }


_PRX_CALL = {"use_resolution_binning": False, "guidance_scale": 1.0}
_PRX_NOTE = "with guidance the pipeline itself fails on several images: `guidance_scale=1`"
LINEAR_ATTENTION = {
    "SanaPipeline": Family(_sana, _SANA_CALL),
    "SanaPAGPipeline": Family(_sana_pag, _SANA_CALL),
    "SanaControlNetPipeline": Family(_sana_controlnet, {"control_image": CONTROL[..., :32, :32], **_SANA_CALL}),
    "SanaSprintPipeline": Family(_sana_sprint, _SANA_CALL | {"intermediate_timesteps": None}),
    "PRXPipeline": Family(_prx, {"height": 64, "width": 64, **_PRX_CALL}, _prx_embeddings, _PRX_NOTE),
    "PRXPixelPipeline": Family(_prx_pixel, {"height": 32, "width": 32, **_PRX_CALL}, _prx_embeddings, _PRX_NOTE),
}
