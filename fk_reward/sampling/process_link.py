"""What processes that share a call tell one another besides tensors: that they live, what they do, why they fail.

A collective of `torch.distributed` waits for a process that never comes until the group's time-out, which can be days,
and then says nothing of the reason. So the processes meet in the group's key-value store before each of them. The store
answers at once, also while another process computes, fails or has been killed.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 0.1
_LONGEST_WORDS = 2000


class ProcessFailure(RuntimeError):
    """Another process that shares this call has failed, has ended, or does something else."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a process waits for another, in seconds.

    Attributes:
        notice: until a warning says for whom it waits; again after twice that, and so on.
        silence: without a sign of life of the other, which a thread there gives all the time: it has been killed.
        total: in all. Long steps of a slow process are within it; a process that never makes the call is not.
        beat: between two signs of life.
        parting: for which rank 0 stays after a failure, at most, until the others have read of it.
    """

    notice: float = 10.0
    silence: float = 60.0
    total: float = 1800.0
    beat: float = 2.0
    parting: float = 5.0


class ProcessLink:
    """The tie between processes for the time of one call that all of them make.

    As a context manager it tells the others when the body fails: they raise `ProcessFailure`, with its words, at the
    place where they next meet. All processes make the same calls in the same order.

    Args:
        store: the key-value store that the processes share (`torch.distributed.Store`).
        process: the number of this one.
        num_processes: how many there are.
        patience: how long to wait.

    Attributes:
        process: as given.
        num_processes: as given.

    Example:
        >>> from torch.distributed import HashStore
        >>> with ProcessLink(HashStore(), 0, 1) as link:
        ...     link.meet("about to begin")
        ['about to begin']
    """

    def __init__(self, store: Any, process: int, num_processes: int, *, patience: Patience | None = None) -> None:
        self._store, self.process, self.num_processes = store, process, num_processes
        self._patience = Patience() if patience is None else patience
        self._prefix = f"fk_reward/{store.add(f'fk_reward/calls/{process}', 1)}"
        self._num_meetings = 0
        self._told = False
        start_heart(store, process, self._patience.beat)

    def __enter__(self) -> ProcessLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.tell(error)
            self._part()

    def tell(self, error: BaseException) -> None:
        """Let the others know that this process has failed. The failure of another is not passed on."""
        if self._told or isinstance(error, ProcessFailure):
            return
        self._told = True
        try:
            self._store.set(self._failure_key(self.process), f"{type(error).__name__}: {error}"[:_LONGEST_WORDS])
            self._store.add(f"{self._prefix}/failures", 1)
        except RuntimeError as lost:  # the process that keeps the store has ended: no process is left to tell
            logger.warning("The other processes could not be told of %r: %s", error, lost)

    def _part(self) -> None:
        """After a failure rank 0 stays a little: its end can be that of the store, in which the others read why."""
        try:
            gone = self._store.add(f"{self._prefix}/gone", 1)
            deadline = time.monotonic() + self._patience.parting
            while self.process == 0 and gone < self.num_processes and time.monotonic() < deadline:
                time.sleep(_LONGEST_PAUSE)
                gone = self._store.add(f"{self._prefix}/gone", 0)
        except RuntimeError:  # no store any more
            return

    def meet(self, words: str) -> list[str]:
        """Wait until every process is here.

        Args:
            words: what this one says.

        Returns:
            What each of them says, in their order.

        Raises:
            ProcessFailure: when one of them has failed, gives no sign of life, or does not come in time.
        """
        self._num_meetings += 1
        place = f"{self._prefix}/{self._num_meetings}"
        try:
            self._store.set(f"{place}/{self.process}", words)
            said = [self._hear(f"{place}/{other}", other) for other in range(self.num_processes)]
            # Whoever is here has heard everything that was said at the meeting before.
            self._store.delete_key(f"{self._prefix}/{self._num_meetings - 1}/{self.process}")
        except ProcessFailure:
            raise
        except RuntimeError as error:
            raise ProcessFailure(
                f"Rank {self.process} has lost the store that the processes share: the process that keeps it (rank 0, "
                f"or the launcher) has ended; its own output says why. {error}"
            ) from error
        return said

    def agree(self, call: Mapping[str, Any]) -> None:
        """Check that all processes make the same call.

        Args:
            call: what it is, by name: anything that JSON can say.

        Raises:
            ProcessFailure: on every process, with the names that differ and both values.
        """
        said = [json.loads(words) for words in self.meet(json.dumps(_flat(call), sort_keys=True, default=repr))]
        for other, theirs in enumerate(said):
            differing = [name for name in {**said[0], **theirs} if said[0].get(name) != theirs.get(name)]
            if differing:
                parts = (
                    f"{name} ({_short(said[0].get(name))} and {_short(theirs.get(name))})" for name in sorted(differing)
                )
                raise ProcessFailure(
                    f"The processes that share the particles (spread=True) do not make the same call: rank 0 and rank "
                    f"{other} differ in {', '.join(parts)}. Every process has to pass the same arguments."
                )

    def meet_for(self, rows: str) -> None:
        """Wait until every process is about to exchange the same kind of rows.

        Raises:
            ProcessFailure: also when one of them is about to exchange something else.
        """
        said = self.meet(rows)
        for other, theirs in enumerate(said):
            if theirs != said[0]:
                raise ProcessFailure(
                    f"Rank 0 is about to exchange {said[0]}, rank {other} {theirs}: they do not take the same steps."
                )

    def _hear(self, key: str, other: int) -> str:
        """What another process says under this key, once it does."""
        watch = _Watch(other, self._patience)
        pause = 0.001
        while not self._store.check([key]):
            self._raise_failures()
            watch.look(self._store.add(_heart_key(other), 0))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self._store.get(key).decode()

    def _raise_failures(self) -> None:
        if not self._store.add(f"{self._prefix}/failures", 0):
            return
        for other in range(self.num_processes):
            if self._store.check([self._failure_key(other)]):
                words = self._store.get(self._failure_key(other)).decode()
                raise ProcessFailure(f"Rank {other}, which shares this call, has failed: {words}")

    def _failure_key(self, process: int) -> str:
        return f"{self._prefix}/failed/{process}"


class _Watch:
    """Time spent in waiting for one process, and what is known of it."""

    def __init__(self, other: int, patience: Patience) -> None:
        self._other, self._patience = other, patience
        self._began = self._last_sign = time.monotonic()
        self._beats = 0
        self._next_notice = patience.notice

    def look(self, beats: int) -> None:
        """Take the number of beats of the other's heart; say that it is waited for, or give up."""
        now = time.monotonic()
        if beats != self._beats:
            self._beats, self._last_sign = beats, now
        waited, silent = now - self._began, now - self._last_sign
        if self._beats and silent > self._patience.silence:
            raise ProcessFailure(
                f"Rank {self._other}, which shares this call, has given no sign of life for {silent:.0f} s: its "
                "process has ended (killed, or out of memory?); its own output may say why."
            )
        if waited > self._patience.total:
            what = "has not come to this place" if self._beats else "has not made this call"
            raise ProcessFailure(
                f"Rank {self._other} {what} within {waited:.0f} s. With spread=True every process makes the same calls."
            )
        if waited > self._next_notice:
            self._next_notice *= 2
            state = "is at work" if self._beats else "has not made this call yet"
            logger.warning("Waiting for rank %d for %.0f s; it %s.", self._other, waited, state)


@functools.cache
def start_heart(store: Any, process: int, beat: float) -> threading.Thread:
    """Give signs of life in a thread until the program's main thread ends; once for each store.

    The thread is no daemon: one that is inside of the store while the interpreter goes down would take it with a crash.
    It looks for the end of the main thread four times a second.
    """
    own = store.clone() if hasattr(store, "clone") else store  # a connection of its own: the main thread may wait in it

    def live() -> None:
        due = time.monotonic()
        while threading.main_thread().is_alive():
            if time.monotonic() >= due:
                due += beat
                try:
                    own.add(_heart_key(process), 1)
                except RuntimeError:  # the store's process has ended, and all who need a sign with it
                    return
            time.sleep(min(beat, 0.25))

    thread = threading.Thread(target=live, name=f"fk_reward-rank-{process}")
    thread.start()
    return thread


def _heart_key(process: int) -> str:
    return f"fk_reward/beats/{process}"


def _flat(call: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries among the values taken apart, so that the name of what differs is the setting's."""
    flat: dict[str, Any] = {}
    for name, value in call.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
