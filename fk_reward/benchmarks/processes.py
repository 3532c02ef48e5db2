"""The processes that share a benchmark."""

from __future__ import annotations

import os
from datetime import timedelta

from accelerate import PartialState

LONGEST_WAIT = timedelta(days=7)
"""How long a process waits for the others at the end of a stage: their shares may take longer by hours."""


def join_processes(device: str) -> PartialState:
    """The place of this process among those that `accelerate launch` started; the only one where it did not.

    Args:
        device: "cpu" or "cuda"; accelerate has to be told when GPUs are not to be used.

    Raises:
        ValueError: when processes were launched that accelerate cannot see, which would all do the same work.

    Example:
        >>> join_processes("cpu").num_processes
        1
    """
    state = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but accelerate sees {state.num_processes}, and each would do all "
            f"the work. Start them with `accelerate launch --num_processes {launched}`."
        )
    return state
