"""Read published weights strictly: pickles hold tensors alone, and what is missing or does not fit raises."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ModelT = TypeVar("ModelT", bound="PreTrainedModel")

_NUM_NAMED = 5  # names that an error lists
_HEAD = re.compile(r"(^|\.)(lm_head|value_head|W_[qkv]|ca_layernorm)\.")
"""A language-model head, or the head of a reward that was fine-tuned as a whole (`full_checkpoint.py`)."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP (new and old) and activation checkpointing put into names, wherever they wrap a module."""

_INNER = "|".join(_WRAPPERS)
_MOST_PLACES = 16  # wrapped modules within one another; each entry of a key_mapping takes one mark out of a name
WRAPPED_NAMES = {
    rf"^(?:(?:module|{_INNER})\.)+": "",
    **{rf"(?<=\.)(?:(?:{_INNER})\.)+" + "(?:)" * place: "" for place in range(_MOST_PLACES)},
}
"""`unwrapped_names` as a `key_mapping` of transformers' `from_pretrained`, whose entries change one place of a name."""


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a pickled state dict onto the CPU with `weights_only=True`.

    Args:
        path: a file that holds the state dict, alone or as the entry "state_dict" of a training checkpoint.

    Returns:
        The tensors, under the names that they have without wrappers; see `unwrapped_names`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, or holds anything but tensors, or two of one name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "state_dict": {"weight": torch.ones(2)}}, f"{folder}/head.pt")
        ...     read_state_dict(f"{folder}/head.pt")
        {'weight': tensor([1., 1.])}
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or holds more than tensors and was refused: {error}") from error
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold a mapping of names to tensors, alone or under 'state_dict'.")
    return unwrapped_names(tensors, source=path)


def unwrapped_names(tensors: Mapping[str, Tensor], *, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors under the names that the modules have without wrappers.

    DistributedDataParallel puts `module.` before all names, torch.compile `_orig_mod.`; FSDP and activation
    checkpointing wrap modules within modules, so that their marks are anywhere in a name, in any order.

    Args:
        tensors: a state dict.
        source: where it is from, for the message.

    Raises:
        ValueError: when two tensors would get one name.

    Example:
        >>> names = ["module._orig_mod.proj.weight", "module.blocks.0._checkpoint_wrapped_module.mlp.weight"]
        >>> list(unwrapped_names(dict.fromkeys(names, torch.zeros(1)), source="epoch_1.pt"))
        ['proj.weight', 'blocks.0.mlp.weight']
    """
    origins: dict[str, str] = {}
    for name in tensors:
        plain = _unwrapped(name)
        if plain in origins:
            raise ValueError(f"{source} holds {origins[plain]!r} and {name!r}, which are both {plain!r} unwrapped.")
        origins[plain] = name
    return {plain: tensors[name] for plain, name in origins.items()}


def _unwrapped(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":  # only at the beginning: modules may be called so
        del parts[0]
    return ".".join(parts)


def load_complete(
    model_class: type[ModelT], path: str | os.PathLike[str], *, dtype: torch.dtype | str, revision: str = "main"
) -> ModelT:
    """Load a checkpoint of exactly that architecture, with all weights.

    transformers would also load another architecture's, with a warning and random weights wherever names differ.

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
    """Load the multimodal LLM of a checkpoint without its language-model or reward head; nothing else may be left over.

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
        ignore_mismatched_sizes=True,  # reported below with all others, instead of transformers' error
        **options,
    )
    check_complete(path, info)
    sizes = (f"{name} {tuple(found)} for {tuple(needed)}" for name, found, needed in info["mismatched_keys"])
    _refuse(path, "the checkpoint has weights of other sizes than its config.json says", sizes)
    unknown = (name for name in info["unexpected_keys"] if not _HEAD.search(name))
    _refuse(path, f"the checkpoint has weights that {model_class.__name__} does not have", unknown)
    return model


def _check_model_type(model_class: type[PreTrainedModel], path: str | os.PathLike[str], *, revision: str) -> None:
    # transformers accepts the config of another model with a warning, and uses a default one if there is none.
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
    if found := sorted(names):
        more = f" and {len(found) - _NUM_NAMED} more" if len(found) > _NUM_NAMED else ""
        raise ValueError(f"{path}: {problem}: {', '.join(found[:_NUM_NAMED])}{more}.")
