"""Which checkpoint of an interrupted training to go on from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from fk_reward.rewards.llava_reward.checkpoint import CONFIG_FILE

STATE_FILE = "trainer_state.json"
"""What the Trainer writes last into a checkpoint."""


def last_complete_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint that was written to its end; a process that is killed while writing leaves one that is not.

    Args:
        folder: `output_dir` of a training.

    Returns:
        The folder `checkpoint-<step>`, or None when there is none.

    Example:
        >>> last_complete_checkpoint("nowhere") is None
        True
    """
    steps = {int(found[1]): path for path in Path(folder).glob("checkpoint-*") if (found := _NAME.fullmatch(path.name))}
    return next((steps[step] for step in sorted(steps, reverse=True) if _is_complete(steps[step], step)), None)


_NAME = re.compile(r"checkpoint-(\d+)")


def _is_complete(checkpoint: Path, step: int) -> bool:
    if not (checkpoint / CONFIG_FILE).is_file() or not (checkpoint / STATE_FILE).is_file():
        return False
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except ValueError:  # cut off in the middle
        return False
    return state.get("global_step") == step
