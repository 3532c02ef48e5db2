"""Reading the state dicts that authors publish: pickles, and the names that wrappers of modules leave in any file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping

import torch
from torch import Tensor

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP (new and old) and activation checkpointing put into names, wherever they wrap a module."""

_INNER = "|".join(_WRAPPERS)
_MOST_PLACES = 16
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
    checkpointing wrap modules within modules, so that their marks stand anywhere in a name. They come in any order.

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
