"""A queue of batches for workers that come and go: what one of them lost is handed out again.

It knows nothing of who the workers are (`ray_workers` does), so that it can be tested without them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from fk_reward.benchmarks.runner import Progress, Work, answer_samples

MOST_LOSSES = 10
"""How often a batch is handed out before it is to blame for the ends of its workers, or the memory."""


class Batch(NamedTuple):
    """Samples that a method answers in one call.

    Attributes:
        work: place of the work.
        method: place of the method in it.
        label: of the progress.
        indices: of the samples.
    """

    work: int
    method: int
    label: str
    indices: tuple[int, ...]


def open_batches(works: Sequence[Work]) -> list[Batch]:
    """Prepare the stores of some works: the batches that have yet to be answered, in the order of `run_works`.

    Raises:
        ValueError: a store holds answers of other settings.
    """
    for work in works:
        for method in work.methods:
            work.store.begin(method)
    return [batch for place in range(len(works)) for batch in _batches(works[place], place)]


def _batches(work: Work, place: int) -> list[Batch]:
    found = []
    for number, method in enumerate(work.methods):
        label = f"{work.folder}: {method.name}" if work.folder else method.name
        todo = work.store.missing(method, work.task.samples, range(len(work.task.samples)))
        parts = [tuple(todo[i : i + method.batch_size]) for i in range(0, len(todo), method.batch_size)]
        found += [Batch(place, number, label, part) for part in parts]
    return found


def answer_batch(works: Sequence[Work], batch: Batch) -> None:
    """Answer a batch, but for what a worker has written that ended before it could say so."""
    task, methods, store, _ = works[batch.work]
    if left := store.missing(methods[batch.method], task.samples, batch.indices):
        answer_samples(task, methods[batch.method], store, left)


class BatchQueue:
    """Batches that wait, and what has become of the others.

    Args:
        batches: of all works.

    Attributes:
        waiting: those that nobody has.

    Example:
        >>> queue = BatchQueue([Batch(0, 0, "squares", (0, 1)), Batch(0, 0, "squares", (2,))])
        >>> first, second = queue.waiting.popleft(), queue.waiting.popleft()
        >>> queue.give_back(first)
        >>> tuple(queue.finish(second)), queue.waiting.popleft() == first
        (('squares', 1, 3), True)
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.waiting = deque(batches)
        self._todo, self._done, self._losses = Counter[str](), Counter[str](), Counter[Batch]()
        for batch in batches:
            self._todo[batch.label] += len(batch.indices)

    def finish(self, batch: Batch) -> Progress:
        """Note that a batch is answered: the progress of its work."""
        self._done[batch.label] += len(batch.indices)
        return Progress(batch.label, self._done[batch.label], self._todo[batch.label])

    def give_back(self, batch: Batch) -> None:
        """Put a batch to the front whose worker has ended.

        Raises:
            RuntimeError: `MOST_LOSSES` workers have ended over it.
        """
        self.waiting.appendleft(batch)
        self._losses[batch] += 1
        if self._losses[batch] >= MOST_LOSSES:
            raise RuntimeError(
                f"{MOST_LOSSES} workers have died over {batch.label}, samples {', '.join(map(str, batch.indices))}. "
                "Look into their logs, and for want of memory take smaller batches; what is finished is kept."
            )
