"""Ray actors as the workers of a task, on machines that come and go.

Ray starts an actor where a machine is free, and elsewhere when that machine is taken away. What an actor was answering
goes back to the front of the queue; what is in a store is finished, and nobody is asked for it again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from fk_reward.benchmarks.batch_queue import Batch, BatchQueue, answer_batch, open_batches
from fk_reward.benchmarks.runner import Bind, Progress, Work

_MOST_STARTS = 20  # of an actor that dies while it loads its models


class Worker:
    """What an actor does. It loads its models when it is first asked, as Ray hides the errors of an actor's start."""

    def __init__(self, bind: Bind, folder: str) -> None:
        self._bind, self._folder = bind, folder

    @cached_property
    def _works(self) -> Sequence[Work]:
        os.chdir(self._folder)  # that of the command, to which names of files are relative
        return self._bind(f"{socket.gethostname()}-{os.getpid()}")

    def load(self) -> int:
        """Load the models: the number of works."""
        return len(self._works)

    def begin(self) -> list[Batch]:
        """Prepare the stores: what is to be answered."""
        return open_batches(self._works)

    def answer(self, batch: Batch) -> None:
        """Answer a batch."""
        answer_batch(self._works, batch)


def run_on_ray(bind: Bind, *, num_workers: int, num_gpus: float = 0.0) -> Iterator[Progress]:
    """As `run_works`, by actors of the cluster that `ray.init` finds (`RAY_ADDRESS`), or starts on this machine.

    Args:
        bind: loads the models, in each actor; the stores are in folders that all machines see.
        num_workers: most actors at a time; as long as the cluster has no place for some, the others work.
        num_gpus: of an actor, which has a core besides.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: actors die again and again, over the same samples or before they have loaded their models.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is not installed: pip install 'fk-reward[ray]'.") from error
    if not ray.is_initialized():
        ray.init()
    # A core is said, too: by default Ray counts none for an actor that has begun, and places any number of them.
    actor = ray.remote(max_restarts=-1, num_cpus=1, num_gpus=num_gpus)(Worker)
    crew = [actor.remote(bind, os.getcwd()) for _ in range(num_workers)]
    try:
        yield from _hand_out(ray, crew)
    finally:
        for one in crew:
            ray.kill(one)


def _hand_out(ray: Any, crew: Sequence[Any]) -> Iterator[Progress]:
    queue, idle = None, list[Any]()
    at_work: dict[Any, tuple[Any, Batch | None]] = {_again(one.load): (one, None) for one in crew}
    # Actors that still load, or have no place to start at, are not waited for.
    while queue is None or queue.waiting or any(batch for _, batch in at_work.values()):
        (ended,), _ = ray.wait(list(at_work))
        one, batch = at_work.pop(ended)
        try:
            ray.get(ended)
            queue = queue or BatchQueue(ray.get(_again(one.begin)))
        except ray.exceptions.RayActorError as error:
            if queue is None or batch is None:
                raise RuntimeError("An actor dies again and again before it has loaded its models.") from error
            queue.give_back(batch)
            at_work[_again(one.load)] = (one, None)
        else:
            idle.append(one)
            if batch is not None:
                yield queue.finish(batch)
        while queue.waiting and idle:
            one, batch = idle.pop(), queue.waiting.popleft()
            at_work[one.answer.remote(batch)] = (one, batch)


def _again(call: Any) -> Any:
    """Call an actor; Ray does so again where the actor is started again."""
    return call.options(max_task_retries=_MOST_STARTS).remote()
