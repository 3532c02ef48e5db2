"""Loading with transformers without its leniency: what does not fit or is missing raises."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fk_reward.rewards.state_dicts import WRAPPED_NAMES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ModelT = TypeVar("ModelT", bound="PreTrainedModel")

_NUM_NAMED = 5
_HEAD = re.compile(r"(^|\.)lm_head\.")


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
    _check_model_type(model_class, path, revision=revision)
    model, info = model_class.from_pretrained(
        path, dtype=dtype, revision=revision, key_mapping=dict(WRAPPED_NAMES), output_loading_info=True
    )
    check_complete(path, info)
    return model


def load_headless(
    model_class: type[ModelT],
    path: str | os.PathLike[str],
    *,
    revision: str = "main",
    key_mapping: Mapping[str, str] | None = None,
    **options: Any,
) -> ModelT:
    """Load the multimodal LLM of a checkpoint without its language-model head, which is all that may be left over.

    Args:
        model_class: class of transformers, or one that derives from its `PreTrainedModel`.
        path: hub id or folder.
        revision: branch, tag or commit of the hub repository.
        key_mapping: regular expressions for names in the files -> names in the model, after wrappers are taken off.
        options: of `from_pretrained`.

    Raises:
        OSError: when files are missing.
        ValueError: for a checkpoint of another architecture, or one whose weights are not those of its config.json:
            missing, of another size, or not known.
    """
    _check_model_type(model_class, path, revision=revision)
    model, info = model_class.from_pretrained(
        path,
        revision=revision,
        key_mapping={**WRAPPED_NAMES, **(key_mapping or {})},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    check_complete(path, info)
    sizes = (f"{name} {tuple(found)} for {tuple(needed)}" for name, found, needed in info["mismatched_keys"])
    _refuse(path, "the checkpoint has weights of other sizes than its config.json says", sizes)
    unknown = (name for name in info["unexpected_keys"] if not _HEAD.search(name))
    _refuse(path, f"the checkpoint has weights that {model_class.__name__} does not have", unknown)
    return model


def _check_model_type(model_class: type[PreTrainedModel], path: str | os.PathLike[str], *, revision: str) -> None:
    """Without it transformers takes another model's config with a warning, and the default where there is none."""
    config, _ = model_class.config_class.get_config_dict(path, revision=revision)
    if not config:
        raise OSError(f"{path} has no config.json.")
    expected = model_class.config_class.model_type
    if (found := config.get("model_type", expected)) != expected:
        raise ValueError(f"{path} is a model of type {found!r}, where one of type {expected!r} is needed.")


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
    _refuse(path, "the checkpoint lacks weights", loading_info["missing_keys"])


def _refuse(path: str | os.PathLike[str], problem: str, names: Iterable[str]) -> None:
    """Raise unless there are no names."""
    if found := sorted(names):
        more = f" and {len(found) - _NUM_NAMED} more" if len(found) > _NUM_NAMED else ""
        raise ValueError(f"{path}: {problem}: {', '.join(found[:_NUM_NAMED])}{more}.")
