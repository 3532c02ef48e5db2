"""HunyuanDiT, which reads BERT and T5."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDPMScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
)

from tests.tiny.components import T5_SIZE, make_encoder_certain, make_t5_encoder, make_vae
from tests.tiny.families.family import Family
from tests.tiny.families.flux import CONTROL
from tests.tiny.language_models import TEXT_SIZE, make_bert, make_letter_tokenizer
from tests.tiny.tokenizers import make_t5_tokenizer

_SIZES: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "in_channels": 4,
    "cross_attention_dim": TEXT_SIZE,
    "cross_attention_dim_t5": T5_SIZE,
    "pooled_projection_dim": 16,
    "hidden_size": 24,
    "activation_fn": "gelu-approximate",
}


def hunyuan_dit_components(*, num_layers: int = 2) -> dict[str, Any]:
    """The parts of HunyuanDiT."""
    return {
        "transformer": HunyuanDiT2DModel(**_SIZES, num_layers=num_layers),
        "vae": make_vae(scaling_factor=0.13025),
        "scheduler": DDPMScheduler(beta_schedule="scaled_linear", beta_end=0.03, prediction_type="v_prediction"),
        "text_encoder": make_bert(),
        "tokenizer": make_letter_tokenizer(max_length=77),
        "text_encoder_2": make_t5_encoder(),
        "tokenizer_2": make_t5_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _hunyuan_dit() -> HunyuanDiTPipeline:
    return HunyuanDiTPipeline(**hunyuan_dit_components())


def _hunyuan_dit_pag() -> HunyuanDiTPAGPipeline:
    return HunyuanDiTPAGPipeline(**hunyuan_dit_components(), pag_applied_layers="blocks.1")


def _hunyuan_dit_controlnet() -> HunyuanDiTControlNetPipeline:
    controlnet = HunyuanDiT2DControlNetModel(**_SIZES, transformer_num_layers=4)
    components = hunyuan_dit_components(num_layers=4)
    make_encoder_certain(components["vae"])
    return HunyuanDiTControlNetPipeline(**components, controlnet=controlnet)


_CALL = {"height": 64, "width": 64, "use_resolution_binning": False}
HUNYUAN = {
    "HunyuanDiTPipeline": Family(_hunyuan_dit, _CALL),
    "HunyuanDiTControlNetPipeline": Family(_hunyuan_dit_controlnet, _CALL | {"control_image": CONTROL}),
    "HunyuanDiTPAGPipeline": Family(_hunyuan_dit_pag, _CALL),
}
