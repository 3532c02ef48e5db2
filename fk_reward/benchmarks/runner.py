"""The processes that share a benchmark, and the part of each."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from fk_reward.output_folder import hold_folder, hold_folder_together

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


@dataclass(frozen=True)
class Share:
    """The part of one process.

    Attributes:
        shard: index and number of the processes.
        launched: whether accelerate launched them, so that they can wait for each other.
    """

    shard: tuple[int, int]
    launched: bool

    @property
    def leads(self) -> bool:
        """Whether this process reports: the only one, or the first of those that wait for each other."""
        return self.shard[1] == 1 or (self.launched and self.shard[0] == 0)

    def hold(self, folder: Path) -> AbstractContextManager[Path]:
        """Keep the folder of the results for this process, or for all that were launched; see `hold_folder`."""
        if self.launched:
            return hold_folder_together(folder, PartialState())
        return hold_folder(folder, share=self.shard)

    def wait(self) -> None:
        """Until all processes that accelerate launched have come here."""
        if self.launched:
            PartialState().wait_for_everyone()


def find_share(shard: tuple[int, int] | None, device: str) -> Share:
    """What this process should do.

    Args:
        shard: index and number of the processes that share the work without knowing of each other; None for the place
            among those that `accelerate launch` started.
        device: "cpu" or "cuda"; accelerate has to be told when GPUs are not to be used.

    Raises:
        ValueError: when processes were launched that accelerate cannot see, which would all do the same work.

    Example:
        >>> find_share((1, 2), "cpu")
        Share(shard=(1, 2), launched=False)
    """
    if shard is not None:
        return Share(shard, launched=False)
    state = join_processes(device)
    return Share((state.process_index, state.num_processes), launched=state.num_processes > 1)
