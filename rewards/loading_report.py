"""Loading with transformers without its leniency: what does not fit or is missing raises."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ModelT = TypeVar("ModelT", bound="PreTrainedModel")

_NUM_NAMED = 5


def load_complete(
    model_class: type[ModelT], path: str | os.PathLike[str], *, dtype: torch.dtype | str, revision: str = "main"
) -> ModelT:
    """Load a checkpoint of exactly that architecture, with all weights.

    transformers would load another one's, too, with a warning and random weights wherever names differ.

    Args:
        model_class: class of transformers.
        path: hub id or folder.
        dtype: of the weights, or "auto" for that of the files.
        revision: branch, tag or commit of the hub repository.

    Raises:
        OSError: when files are missing.
        ValueError: for a checkpoint of another architecture, or one that lacks weights.
    """
    config, _ = model_class.config_class.get_config_dict(path, revision=revision)
    expected = model_class.config_class.model_type
    if (found := config.get("model_type", expected)) != expected:
        raise ValueError(f"{path} is a model of type {found!r}, where one of type {expected!r} is needed.")
    model, info = model_class.from_pretrained(path, dtype=dtype, revision=revision, output_loading_info=True)
    check_complete(path, info)
    return model


def check_complete(path: str | os.PathLike[str], loading_info: Mapping[str, Any]) -> None:
    """Raise when weights of a model were not in its checkpoint; transformers only warns, and draws them at random.

    Args:
        path: hub id or folder, for the message.
        loading_info: what `from_pretrained` returns besides the model with `output_loading_info=True`.

    Raises:
        ValueError: it names the first of the weights.

    Example:
        >>> check_complete("owner/name", {"missing_keys": set()})
        >>> check_complete("owner/name", {"missing_keys": {"head.weight", "head.bias"}})
        Traceback (most recent call last):
        ValueError: owner/name: the checkpoint lacks weights: head.bias, head.weight.
    """
    if missing := sorted(loading_info["missing_keys"]):
        more = f" and {len(missing) - _NUM_NAMED} more" if len(missing) > _NUM_NAMED else ""
        raise ValueError(f"{path}: the checkpoint lacks weights: {', '.join(missing[:_NUM_NAMED])}{more}.")
