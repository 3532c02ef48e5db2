"""Reading the state dicts that authors publish as pickles."""

from __future__ import annotations

import os
import pickle

import torch
from torch import Tensor


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a pickled state dict onto the CPU with `weights_only=True`.

    Args:
        path: a file that holds the state dict, alone or as the entry "state_dict" of a training checkpoint.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, or holds anything but tensors.

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
    tensors = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must hold a mapping of names to tensors, alone or under 'state_dict'.")
    return dict(tensors)
