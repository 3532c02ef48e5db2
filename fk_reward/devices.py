"""Devices and floating types by the names that people type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def check_device_name(name: str) -> None:
    """Raise for what is no name of a device, without asking whether it is there.

    Raises:
        ValueError: the message lists the names.

    Example:
        >>> check_device_name("cuda:1")
        >>> check_device_name("tpu")
        Traceback (most recent call last):
        ValueError: --device should be one of auto, cpu, cuda, cuda:N, mps, got 'tpu'.
    """
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is None:
        raise ValueError(f"--device should be one of {', '.join(DEVICES)}, got {name!r}.")


def check_dtype_name(name: str) -> None:
    """Raise for what is no name of a floating type.

    Raises:
        ValueError: the message lists the names.

    Example:
        >>> check_dtype_name("float16")
    """
    if name not in DTYPES:
        raise ValueError(f"--dtype should be one of {', '.join(DTYPES)}, got {name!r}.")


def resolve_device(name: str) -> str:
    """Resolve the name of a device; "auto" is the GPU if there is one.

    Raises:
        ValueError: an unknown name, or one of a device that is not there.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    import torch  # only here, so that `fk-reward --help` does not wait for it

    check_device_name(name)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if num_gpus else "cpu"
    if name.startswith("cuda") and not num_gpus:
        raise ValueError(f"--device {name}: PyTorch sees no GPU here; use --device cpu.")
    if name.startswith("cuda:") and int(name.partition(":")[2]) >= num_gpus:
        raise ValueError(f"--device {name}: there are {num_gpus} GPUs here, cuda:0 to cuda:{num_gpus - 1}.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: PyTorch sees no Apple GPU here; use --device cpu.")
    return name


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """Resolve the name of a floating type; "auto" is half precision on the GPU and single precision on the CPU.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> resolve_dtype("auto", "cpu")
        torch.float32
    """
    import torch

    check_dtype_name(name)
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
