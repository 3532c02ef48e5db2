"""Which checkpoint an interrupted training continues from, and whether anything is left to do."""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
"""The Trainer writes it last into a checkpoint, and `fk-reward train` last into `output_dir`."""

_NAME = re.compile(r"checkpoint-(\d+)")
_SHARDED = ("optimizer_*", "global_step*", "pytorch_model_fsdp*")
"""What FSDP and DeepSpeed write instead of `optimizer.pt`; they check their files themselves."""


def find_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders `checkpoint-<step>` of a training, complete or not, the newest first.

    Example:
        >>> find_checkpoints("nowhere")
        []
    """
    # By number: as text, checkpoint-900 would come after checkpoint-1000, and times of copied folders say nothing.
    steps = {int(found[1]): path for path in Path(folder).glob("checkpoint-*") if (found := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps, reverse=True)]


def last_complete_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint; a killed process may leave an incomplete one.

    Newer, damaged checkpoints are named in a warning, each with its problems.

    Args:
        folder: `output_dir` of a training.

    Returns:
        The folder `checkpoint-<step>`, or None when there are no checkpoints.

    Raises:
        ValueError: when there are checkpoints, but none is complete; the message has the problems of each.

    Example:
        >>> last_complete_checkpoint("nowhere") is None
        True
    """
    damaged: list[str] = []
    for checkpoint in find_checkpoints(folder):
        problems = checkpoint_problems(checkpoint)
        if not problems:
            if damaged:
                logger.warning(
                    "Continuing from %s, since newer checkpoints are damaged. %s", checkpoint, " ".join(damaged)
                )
            return checkpoint
        damaged.append(f"{checkpoint}: {'; '.join(problems)}.")
    if damaged:
        raise ValueError(
            f"No checkpoint in {folder} is complete. {' '.join(damaged)} Restore a copy of one, or remove them to "
            "start again."
        )
    return None


def checkpoint_problems(checkpoint: Path) -> list[str]:
    """Missing or damaged files among those from which a training continues bit for bit.

    Weights, their configuration and the Trainer's state are read. The states of optimizer, schedule and random numbers
    are checked by the checksums that `torch.save` writes.

    Args:
        checkpoint: a folder `checkpoint-<step>`.

    Returns:
        A phrase for each problem; empty for a complete checkpoint.

    Example:
        >>> checkpoint_problems(Path("nowhere"))
        ['it is not a folder']
    """
    if not checkpoint.is_dir():
        return ["it is not a folder"]
    return [*_weight_problems(checkpoint), *_state_problems(checkpoint), *_archive_problems(checkpoint)]


def finished_metrics(
    folder: str | os.PathLike[str], *, planned_steps: int, patience: int | None
) -> dict[str, float] | None:
    """The last measures of a finished training, from its files; None if it is unfinished or had another length.

    Args:
        folder: `output_dir` of the training.
        planned_steps: its length.
        patience: of early stopping now; None for no early stopping.

    Returns:
        The `eval_...` measures of `all_results.json`; empty without a validation set.
    """
    folder = Path(folder)
    state, results = _read_object(folder / STATE_FILE), _read_object(folder / "all_results.json")
    if state is None or results is None or state.get("max_steps") != planned_steps or _weight_problems(folder):
        return None
    if state.get("global_step", 0) < planned_steps and _patience_of(state) != patience:
        return None  # it stopped early, and with another patience it would have stopped elsewhere or not at all
    return {name: value for name, value in results.items() if name.startswith("eval_")}


def _patience_of(state: Mapping[str, Any]) -> int | None:
    stopping = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
    return stopping.get("args", {}).get("early_stopping_patience")


def _weight_problems(checkpoint: Path) -> list[str]:
    try:
        load_own_checkpoint(checkpoint)
    except (OSError, ValueError) as error:
        return [str(error).rstrip(".")]
    return []


def _state_problems(checkpoint: Path) -> list[str]:
    state = _read_object(checkpoint / STATE_FILE)
    if state is None:
        return [f"{STATE_FILE} {'is damaged' if (checkpoint / STATE_FILE).exists() else 'is missing'}"]
    found = _NAME.fullmatch(checkpoint.name)
    if found is not None and state.get("global_step") != int(found[1]):
        return [f"{STATE_FILE} is of step {state.get('global_step')}"]
    return []


def _archive_problems(checkpoint: Path) -> Iterator[str]:
    """Problems of files that `torch.save` wrote."""
    names = ["scheduler.pt"]
    if not any(True for pattern in _SHARDED for _ in checkpoint.glob(pattern)):
        names.append("optimizer.pt")
    random_states = sorted(path.name for path in checkpoint.glob("rng_state*.pth"))
    names += random_states or ["rng_state.pth"]
    names += ["scaler.pt"] if (checkpoint / "scaler.pt").exists() else []
    for name in names:
        problem = _archive_problem(checkpoint / name)
        if problem is not None:
            yield f"{name} {problem}"


def _archive_problem(path: Path) -> str | None:
    if not path.is_file():
        return "is missing"
    # Not torch.load: states of the optimizer are large, and random states are pickles of more than tensors.
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error) as error:
        return f"is damaged ({error})"
    return None if bad is None else f"is damaged ({bad} does not have its checksum)"


def _read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is missing or cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
