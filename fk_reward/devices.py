"""Devices and floating types by the names that people type."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def resolve_device(name: str) -> str:
    """Resolve the name of a device; "auto" is the GPU if there is one.

    Raises:
        ValueError: an unknown name, or "cuda" without a GPU.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    import torch  # only here, so that `fk-reward --help` does not wait for it

    if name not in DEVICES:
        raise ValueError(f"--device should be one of {', '.join(DEVICES)}, got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """Resolve the name of a floating type; "auto" is half precision on the GPU and single precision on the CPU.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> resolve_dtype("auto", "cpu")
        torch.float32
    """
    import torch

    if name not in DTYPES:
        raise ValueError(f"--dtype should be one of {', '.join(DTYPES)}, got {name!r}.")
    automatic = "float32" if device == "cpu" else "float16"
    return getattr(torch, automatic if name == "auto" else name)


def reward_place(device: str | torch.device | None) -> torch.device | None:
    """The device that a reward is to be put on; None for the pipeline's.

    Raises:
        ValueError: for an unknown name, or a device that is not there.

    Example:
        >>> reward_place("cpu")
        device(type='cpu')
        >>> reward_place("gpu")
        Traceback (most recent call last):
        ValueError: reward_device should be a device that PyTorch can use here, such as 'cpu' or 'cuda:1', got ...
    """
    import torch

    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"reward_device should be a device that PyTorch can use here, such as 'cpu' or 'cuda:1', got "
            f"{str(device)!r}: {reason}"
        ) from error
