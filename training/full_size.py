"""The backbones at their real sizes without weights, to count what of them is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLModel

from fk_reward.rewards.llava_reward.backbone import Backbone
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.llava_reward.phi3_vision import PhiVisionBackbone
from fk_reward.rewards.llava_reward.phi3_vision_model import PhiVisionConfig, PhiVisionModel
from fk_reward.rewards.llava_reward.qwen2_5_vl import IMAGE_TOKEN, QwenVLBackbone
from fk_reward.rewards.llava_reward.qwen2_5_vl_images import PatchTransform
from fk_reward.training.new_dimension import new_dimension
from fk_reward.training.trainable import TrainableReward, TrainableShare, trainable_share

_PHI_3_5_VISION = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "pad_token_id": 32000,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
    "img_processor": {"image_dim_out": 1024},
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
}
_QWEN2_5_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
_QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
}


def full_size_share(model_type: str, *, lora_rank: int = 128, cross_attention: bool = True) -> TrainableShare:
    """What of a backbone of LLaVA-Reward is trained, at the size of the official checkpoints.

    Nothing is downloaded and no weights are made: the model is built on the meta device. The backbone counts as it is
    used, that is without the language-model head.

    Args:
        model_type: "phi3_v" (`microsoft/Phi-3.5-vision-instruct`) or "qwen2_5_vl" (`Qwen/Qwen2.5-VL-7B-Instruct`).
        lora_rank: rank of LoRA.
        cross_attention: whether there is a SkipCA.

    Raises:
        ValueError: for another backbone.

    Example:
        >>> print(full_size_share("phi3_v"))  # doctest: +SKIP
    """
    if model_type not in FULL_SIZES:
        raise ValueError(f"Expected one of {', '.join(FULL_SIZES)}, got {model_type!r}.")
    with torch.device("meta"):
        network = LlavaRewardModel(FULL_SIZES[model_type]())
        config = LlavaRewardConfig(
            dimension="counted", backbone=model_type, base_model=model_type, cross_attention=cross_attention
        )
        key = new_dimension(network, config, lora_rank=lora_rank)
    return trainable_share(TrainableReward(network, key))


def phi_3_5_vision() -> Backbone:
    """Phi-3.5-vision at the sizes of its config.json, with a tokenizer that knows no words."""
    return PhiVisionBackbone(PhiVisionModel(PhiVisionConfig(**_PHI_3_5_VISION)), _tokenizer())


def qwen2_5_vl_7b() -> Backbone:
    """Qwen2.5-VL-7B at the sizes of its config.json, with a tokenizer that knows no words."""
    config = Qwen2_5_VLConfig(text_config=_QWEN2_5_7B, vision_config=_QWEN2_5_VISION, image_token_id=0)
    transform = PatchTransform.from_config({"min_pixels": 3136, "max_pixels": 12845056})
    return QwenVLBackbone(Qwen2_5_VLModel(config), _tokenizer(), transform=transform)  # type: ignore[arg-type]


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {IMAGE_TOKEN: 0, "<unk>": 1, "<eos>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),  # noqa: S106 (no password)
        unk_token="<unk>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
    )


FULL_SIZES: dict[str, Callable[[], Backbone]] = {"phi3_v": phi_3_5_vision, "qwen2_5_vl": qwen2_5_vl_7b}
"""Backbone of the official checkpoints -> what builds it."""
