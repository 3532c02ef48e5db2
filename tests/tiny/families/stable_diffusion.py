"""Stable Diffusion 1 and 2 and their many variants: guidance, control, layouts, depth, panoramas."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ControlNetModel,
    ControlNetXSAdapter,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    SemanticStableDiffusionPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionModelEditingPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionParadigmsPipeline,
    StableDiffusionPipeline,
    StableDiffusionPipelineSafe,
    StableDiffusionSAGPipeline,
    StableUnCLIPPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.schedulers import DDPMParallelScheduler

from tests.tiny.components import HIDDEN_SIZE, make_clip_text_model, make_projected_clip_text_model, make_vae
from tests.tiny.families.family import Family
from tests.tiny.families.flux import CONTROL
from tests.tiny.families.kandinsky import make_kandinsky_prior, make_prior_scheduler
from tests.tiny.latent_diffusion import SD_BETAS, make_sd, make_unet
from tests.tiny.tokenizers import make_clip_tokenizer

ATTENTION_FIRST = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""T2I adapters add to the last features of a block, which without attention are downsampled already."""


def sd_components(**options: Any) -> dict[str, Any]:
    """The parts of Stable Diffusion, with the scheduler that its repositories state."""
    scheduler = PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1)
    components = dict(make_sd(scheduler=scheduler).components)
    return {**components, "requires_safety_checker": False, **options}


def make_controlnet(**options: Any) -> ControlNetModel:
    """A ControlNet of the tiny UNet."""
    return ControlNetModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "norm_num_groups": 8,
            "cross_attention_dim": HIDDEN_SIZE,
            "attention_head_dim": 2,
            "conditioning_embedding_out_channels": (4, 4, 4, 4),
        }
        | options
    )


def make_adapter() -> T2IAdapter:
    """A T2I adapter for the two resolutions of the tiny UNet."""
    return T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=8)


def make_controlnet_xs(unet: UNet2DConditionModel) -> ControlNetXSAdapter:
    """A ControlNet-XS of this UNet, which has to have two layers a block."""
    return ControlNetXSAdapter.from_unet(
        unet, size_ratio=1, learn_time_embedding=True, conditioning_embedding_out_channels=(4, 4, 4, 4)
    )


def _sd() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**sd_components())


def _pag() -> StableDiffusionPAGPipeline:
    return StableDiffusionPAGPipeline(**sd_components(), pag_applied_layers=["mid"])


def _controlnet() -> StableDiffusionControlNetPipeline:
    return StableDiffusionControlNetPipeline(**sd_components(), controlnet=make_controlnet())


def _controlnet_pag() -> StableDiffusionControlNetPAGPipeline:
    return StableDiffusionControlNetPAGPipeline(
        **sd_components(), controlnet=make_controlnet(), pag_applied_layers=["mid"]
    )


def _controlnet_xs() -> StableDiffusionControlNetXSPipeline:
    unet = make_unet(cross_attention_dim=HIDDEN_SIZE, attention_head_dim=2, layers_per_block=2)
    adapter = make_controlnet_xs(unet)
    return StableDiffusionControlNetXSPipeline(**_without_image_encoder(unet=unet), controlnet=adapter)


def _without_image_encoder(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in sd_components(**options).items() if name != "image_encoder"}


def _adapter() -> StableDiffusionAdapterPipeline:
    unet = make_unet(cross_attention_dim=HIDDEN_SIZE, attention_head_dim=2, **ATTENTION_FIRST)
    return StableDiffusionAdapterPipeline(**_without_image_encoder(unet=unet), adapter=make_adapter())


def _lcm() -> LatentConsistencyModelPipeline:
    unet = make_unet(cross_attention_dim=HIDDEN_SIZE, attention_head_dim=2, time_cond_proj_dim=8)
    return LatentConsistencyModelPipeline(**sd_components(unet=unet, scheduler=LCMScheduler(**SD_BETAS)))


def _stable_unclip() -> StableUnCLIPPipeline:
    unet = make_unet(
        cross_attention_dim=HIDDEN_SIZE,
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * HIDDEN_SIZE,
        use_linear_projection=True,
    )
    return StableUnCLIPPipeline(
        prior_tokenizer=make_clip_tokenizer(),
        prior_text_encoder=make_projected_clip_text_model(),
        prior=make_kandinsky_prior(),
        prior_scheduler=make_prior_scheduler(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=HIDDEN_SIZE),
        image_noising_scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=make_clip_tokenizer(),
        text_encoder=make_clip_text_model(),
        unet=unet,
        scheduler=PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction"),
        vae=make_vae(),
    )


def _semantic() -> SemanticStableDiffusionPipeline:
    return SemanticStableDiffusionPipeline(**_without_image_encoder())


def _attend_and_excite() -> StableDiffusionAttendAndExcitePipeline:
    return StableDiffusionAttendAndExcitePipeline(**_without_image_encoder())


def _gligen() -> StableDiffusionGLIGENPipeline:
    unet = make_unet(cross_attention_dim=HIDDEN_SIZE, attention_head_dim=2, attention_type="gated")
    return StableDiffusionGLIGENPipeline(**_without_image_encoder(unet=unet))


def _ldm3d() -> StableDiffusionLDM3DPipeline:
    return StableDiffusionLDM3DPipeline(**sd_components(vae=make_vae(in_channels=6, out_channels=6)))


def _panorama() -> StableDiffusionPanoramaPipeline:
    return StableDiffusionPanoramaPipeline(**sd_components(scheduler=DDIMScheduler(**SD_BETAS, clip_sample=False)))


def _safe() -> StableDiffusionPipelineSafe:
    return StableDiffusionPipelineSafe(**sd_components())


def _sag() -> StableDiffusionSAGPipeline:
    return StableDiffusionSAGPipeline(**sd_components(scheduler=DDIMScheduler(**SD_BETAS, clip_sample=False)))


def _model_editing() -> StableDiffusionModelEditingPipeline:
    return StableDiffusionModelEditingPipeline(**_without_image_encoder())


def _paradigms() -> StableDiffusionParadigmsPipeline:
    scheduler = DDPMParallelScheduler(**SD_BETAS, clip_sample=False)
    return StableDiffusionParadigmsPipeline(**_without_image_encoder(scheduler=scheduler))


def with_image_each(prompts: list[str]) -> dict[str, Any]:
    """Adapters take one image a prompt."""
    return {"prompt": list(prompts), "image": [CONTROL[0]] * len(prompts)}


def _with_tokens(prompts: list[str]) -> dict[str, Any]:
    return {"prompt": list(prompts), "token_indices": [[2, 5]] * len(prompts)}


_SMALL = {"height": 64, "width": 64}
_CONTROLLED = {"image": CONTROL}
STABLE_DIFFUSION = {
    "StableDiffusionPipeline": Family(_sd),
    "StableDiffusionPAGPipeline": Family(_pag),
    "StableDiffusionControlNetPipeline": Family(_controlnet, _CONTROLLED),
    "StableDiffusionControlNetPAGPipeline": Family(_controlnet_pag, _CONTROLLED),
    "StableDiffusionControlNetXSPipeline": Family(_controlnet_xs, _CONTROLLED),
    "StableDiffusionAdapterPipeline": Family(_adapter, _SMALL, with_image_each),
    "LatentConsistencyModelPipeline": Family(_lcm, _SMALL),
    "StableUnCLIPPipeline": Family(_stable_unclip, _SMALL | {"prior_num_inference_steps": 2}),
    "SemanticStableDiffusionPipeline": Family(_semantic, {"editing_prompt": ["a blue hat"], "edit_warmup_steps": 0}),
    "StableDiffusionAttendAndExcitePipeline": Family(
        _attend_and_excite, _SMALL | {"max_iter_to_alter": 1, "thresholds": {}, "attn_res": (4, 4)}, _with_tokens
    ),
    "StableDiffusionGLIGENPipeline": Family(
        _gligen, _SMALL | {"gligen_phrases": ["a circle"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}
    ),
    "StableDiffusionLDM3DPipeline": Family(_ldm3d, _SMALL),
    "StableDiffusionPanoramaPipeline": Family(_panorama, {"height": 64, "width": 128}),
    "StableDiffusionPipelineSafe": Family(_safe, {"sld_warmup_steps": 0}),
    "StableDiffusionSAGPipeline": Family(_sag, _SMALL),
    "StableDiffusionModelEditingPipeline": Family(_model_editing),
    "StableDiffusionParadigmsPipeline": Family(_paradigms, {"parallel": 2}),
}
