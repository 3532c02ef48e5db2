"""From files to an answer model, which all rewards that ask for the same one share."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakValueDictionary

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from fk_reward.models import file_state, resolve_model
from fk_reward.rewards.vqascore.answer_model import AnswerModel
from fk_reward.rewards.vqascore.clip_t5_loading import is_clip_t5, load_clip_t5
from fk_reward.rewards.weights import WRAPPED_NAMES, check_complete

_MODELS: WeakValueDictionary[tuple[str, ...], AnswerModel] = WeakValueDictionary()


def load_answer_model(
    path: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
) -> AnswerModel:
    """Load an image-text-to-text model with its processor, or return the one that another reward holds.

    A model lives as long as a reward holds it; rewards that share one move together. Where one of them was moved to
    another dtype, the model is not shared any more. Code that comes with a checkpoint is never run.

    Args:
        path: hub id or folder of a model that `AutoModelForImageTextToText` has, or of a CLIP-FlanT5.
        torch_dtype: floating dtype of the weights.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.

    Raises:
        OSError: when files are missing.
        ValueError: for an architecture that transformers does not have, or a checkpoint that lacks weights.
    """
    path = resolve_model(path)
    settings = {"attn_implementation": attn_implementation, "device_map": device_map, "revision": revision}
    key = (file_state(path), str(torch_dtype), repr(settings))
    model = _MODELS.get(key)
    if model is None or model.dtype != torch_dtype:
        model = _load(path, {"dtype": torch_dtype, **settings})
        _MODELS[key] = model
    return model


def _load(path: str, options: dict[str, Any]) -> AnswerModel:
    revision = options["revision"]
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if is_clip_t5(config):
        return AnswerModel(*load_clip_t5(path, **options))
    _check_architecture(path, config)
    model, info = AutoModelForImageTextToText.from_pretrained(
        path, key_mapping=dict(WRAPPED_NAMES), output_loading_info=True, **options
    )
    check_complete(path, info)
    return AnswerModel(model, load_processor(path, revision=revision))


def load_processor(path: str | os.PathLike[str], *, revision: str = "main") -> ProcessorMixin:
    """Load the processor that belongs to a model, with PIL's image processor and without what reads videos.

    transformers' `AutoProcessor` wants torchvision where the model reads videos, too (all of Qwen's do).

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of the hub repository.

    Raises:
        OSError: when files are missing.
    """
    config = AutoConfig.from_pretrained(path, revision=revision)
    return without_video(PROCESSOR_MAPPING[type(config)]).from_pretrained(path, revision=revision, backend="pil")


def without_video(processor: type[ProcessorMixin]) -> Any:
    """The class of a processor without the part that reads videos, which would want torchvision."""
    names = [name for name in processor.get_attributes() if name != "video_processor"]
    return type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda _: names)})


def _check_architecture(path: str, config: dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"{path} is of type {model_type!r} ({config.get('architectures')}), which transformers' "
            "AutoModelForImageTextToText does not have, and code that comes with a checkpoint is never run. Use a "
            "model that transformers has: Qwen/Qwen3-VL-2B-Instruct, llava-hf/llava-1.5-7b-hf, ..."
        )
