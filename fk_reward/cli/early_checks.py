"""What is wrong with the value of an option, told before PyTorch and Diffusers are imported, which takes seconds.

Each check is a validator of cyclopts: `(type, value) -> None`, with a ValueError that says what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fk_reward.devices import check_device_name, check_dtype_name
from fk_reward.models import model_source
from fk_reward.text import did_you_mean

SOLVER_NAMES = (
    *("ddim-50", "ddim-100", "sde-dpmsolver++-20", "sde-dpmsolver++-25"),
    *("lcm-4", "lcm-8", "tcd-4", "tcd-8"),
    *("glass-28", "glass-48"),
    *("distar-1", "turbo-1", "turbo-4", "schnell-4", "schnell-ode-4"),
    *(f"tlcm-{steps}" for steps in range(2, 9)),
)
"""Names of `fk_reward.pipelines.SOLVERS`, whose module imports Diffusers; a test keeps them equal."""

OFFLOADS = ("none", "model", "sequential")
"""Where weights wait: on the device, or on the CPU, whole models or modules one by one."""

Validator = Callable[[Any, Any], None]


def of_each(check: Callable[[str], object]) -> Validator:
    """A validator that applies a check to a value, or to each of several; None is not checked.

    Example:
        >>> of_each(check_device_name)(str, "tpu")
        Traceback (most recent call last):
        ValueError: --device should be one of auto, cpu, cuda, cuda:N, mps, got 'tpu'.
    """

    def validate(_type: Any, value: Any) -> None:
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None:
                check(each)

    return validate


def one_of(option: str, known: Sequence[str]) -> Validator:
    """A validator for one of a few names.

    Example:
        >>> one_of("--offload", OFFLOADS)(str, "modle")
        Traceback (most recent call last):
        ValueError: --offload should be one of none, model, sequential, got 'modle'. Did you mean 'model'?
    """

    def check(value: str) -> None:
        if value not in known:
            hint = did_you_mean(value, known, limit=1)
            raise ValueError(f"{option} should be one of {', '.join(known)}, got {value!r}.{hint}")

    return of_each(check)


def check_reward(name: str) -> None:
    """Raise for the name of a reward that is not registered; compositions are read when they are loaded.

    Raises:
        ValueError: the message suggests close names and lists all.
    """
    from fk_reward.rewards.registry import check_reward_name

    check_reward_name(name)


def check_solver(name: str) -> None:
    """Raise for the name of a solver that is not known.

    Raises:
        ValueError: the message suggests close names and lists all.

    Example:
        >>> check_solver("ddim100")
        Traceback (most recent call last):
        ValueError: Unknown solver 'ddim100'. Did you mean 'ddim-100', ...
    """
    if name not in SOLVER_NAMES:
        hint = did_you_mean(name, SOLVER_NAMES)
        raise ValueError(f"Unknown solver {name!r}.{hint} Known are {', '.join(map(repr, SOLVER_NAMES))}.")


def check_model(name: str) -> None:
    """Raise for a text-to-image model that is neither a known name, nor a folder, nor a possible hub id.

    Raises:
        OSError: a path to nowhere or to a file.
        ValueError: a repository that its owner has withdrawn.
    """
    try:
        model_source(name, "a pipeline")
    except OSError as error:  # cyclopts reports only ValueErrors of validators
        raise ValueError(str(error)) from error


def check_scheduler_name(text: str) -> None:
    """Raise for what cannot be the name of a Diffusers scheduler with settings.

    Raises:
        ValueError: the message shows the form.

    Example:
        >>> check_scheduler_name("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++")
        >>> check_scheduler_name("ddim 50")
        Traceback (most recent call last):
        ValueError: --scheduler should be the name of a Diffusers scheduler, such as DDIMScheduler, with ...
    """
    if re.fullmatch(r"[A-Za-z]\w*(:\w+=[^,=]+(,\w+=[^,=]+)*)?", text) is None:
        raise ValueError(
            "--scheduler should be the name of a Diffusers scheduler, such as DDIMScheduler, with settings behind a "
            f"colon if any (DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++), got {text!r}."
        )


def check_lora(text: str) -> None:
    """Raise for a LoRA that is a path to nowhere, or whose weight is no number.

    Raises:
        ValueError: the message says which.

    Example:
        >>> check_lora("latent-consistency/lcm-lora-sdxl=0.8")
        >>> check_lora("style.safetensors=much")
        Traceback (most recent call last):
        ValueError: --lora style.safetensors=much: the weight behind = should be a number, got 'much'.
    """
    source, mark, weight = text.rpartition("=") if "=" in text else (text, "", "")
    if mark:
        try:
            float(weight)
        except ValueError as error:
            raise ValueError(f"--lora {text}: the weight behind = should be a number, got {weight!r}.") from error
    if not source.strip():
        raise ValueError(f"--lora {text}: name a file, a folder or a hub id before the weight.")
    if not Path(source).exists() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w./-]+\.safetensors)?", source):
        raise ValueError(
            f"--lora {text}: no such file or folder, and no hub id (owner/name, or owner/name/file.safetensors)."
        )
    if source.endswith(".safetensors") and not Path(source).exists() and source.count("/") < 2:
        raise ValueError(f"--lora {text}: no such file.")


def check_prompts_file(path: Path) -> None:
    """Raise for a file of prompts that is not there.

    Raises:
        ValueError: the message names it.
    """
    if str(path) != "-" and not path.is_file():
        raise ValueError(f"--prompts {path}: {'that is a folder' if path.is_dir() else 'no such file'}.")


DEVICE, DTYPE, REWARD, SOLVER, MODEL = map(
    of_each, (check_device_name, check_dtype_name, check_reward, check_solver, check_model)
)
"""Validators of the options that many commands have."""
