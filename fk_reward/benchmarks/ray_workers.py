"""Ray actors as the workers of a task, on machines that come and go.

Ray starts an actor where a machine is free, and starts one whose machine was taken away again, elsewhere. Who is idle
gets the next samples of the queue; those of an actor that has died go back to its front. The store is as ever: what is
written there is finished, and nobody is asked for it again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from fk_reward.benchmarks.runner import Progress, Store
from fk_reward.benchmarks.task import Method, Task

MOST_DEATHS = 10
"""How often actors may die over the same samples before these are to blame, or the memory."""
_MOST_STARTS = 20  # of an actor that dies while it loads its models


class Bound(NamedTuple):
    """A task, who answers it, and where the answers go."""

    task: Task[Any]
    methods: Sequence[Method[Any, Any]]
    store: Store


class Batch(NamedTuple):
    """Indices of samples that a method, by its place, answers in one call."""

    method: int
    indices: tuple[int, ...]


class Worker:
    """What an actor does.

    Args:
        bind: loads the models, once; not at the actor's start, of which Ray hides the errors.
    """

    def __init__(self, bind: Callable[[], Bound]) -> None:
        self._bind = bind

    @cached_property
    def _bound(self) -> Bound:
        return self._bind()

    def load(self) -> None:
        """Load the models."""
        _ = self._bound

    def begin(self) -> list[tuple[str, list[Batch]]]:
        """Prepare the store: the name of each method, and the batches that it has yet to answer."""
        task, methods, store = self._bound
        for method in methods:
            store.begin(method)
        found = []
        for place, method in enumerate(methods):
            todo, size = store.missing(method, task.samples, range(len(task.samples))), method.batch_size
            found.append((method.name, [Batch(place, tuple(todo[i : i + size])) for i in range(0, len(todo), size)]))
        return found

    def answer(self, batch: Batch) -> None:
        """Answer a batch, but for what an actor has written that died before it could say so."""
        task, methods, store = self._bound
        method = methods[batch.method]
        indices = store.missing(method, task.samples, batch.indices)
        if indices:
            samples = [task.samples[index] for index in indices]
            store.write(method, indices, samples, method.answer(indices, samples))


class _Queue:
    """Batches that wait, and what has become of the others."""

    def __init__(self, methods: Sequence[tuple[str, Sequence[Batch]]]) -> None:
        self.waiting = deque(batch for _, batches in methods for batch in batches)
        self._progress = [Progress(name, 0, sum(len(batch.indices) for batch in batches)) for name, batches in methods]
        self._deaths = Counter[Batch]()

    def finish(self, batch: Batch) -> Progress:
        label, done, todo = self._progress[batch.method]
        self._progress[batch.method] = Progress(label, done + len(batch.indices), todo)
        return self._progress[batch.method]

    def give_back(self, batch: Batch) -> None:
        self.waiting.appendleft(batch)
        self._deaths[batch] += 1
        if self._deaths[batch] >= MOST_DEATHS:
            raise RuntimeError(
                f"{MOST_DEATHS} actors have died over {self._progress[batch.method].label}, samples "
                f"{', '.join(map(str, batch.indices))}. Look into Ray's logs, and for want of memory take smaller "
                "batches; what is finished is kept."
            )


def run_on_ray(bind: Callable[[], Bound], *, num_workers: int, num_gpus: float = 0.0) -> Iterator[Progress]:
    """As `runner.run`, by actors of the cluster that `ray.init` has joined, or joins (`RAY_ADDRESS`), or starts here.

    Args:
        bind: loads task, methods and store, in each actor. The store is in a folder that all machines see.
        num_workers: most actors at a time; as long as the cluster has no place for some, the others work.
        num_gpus: of an actor, which has a core besides.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: actors die again and again, over the same samples or before they have loaded their models.
    """
    ray = _ray()
    # A core is said, too: by default Ray counts none for an actor that has begun, and places any number of them.
    actor = ray.remote(max_restarts=-1, num_cpus=1, num_gpus=num_gpus)(Worker)
    crew = [actor.remote(bind) for _ in range(num_workers)]
    try:
        yield from _hand_out(ray, crew)
    finally:
        for one in crew:
            ray.kill(one)


def _hand_out(ray: Any, crew: Sequence[Any]) -> Iterator[Progress]:
    queue, idle = None, list[Any]()
    at_work: dict[Any, tuple[Any, Batch | None]] = {_begun(one, "load"): (one, None) for one in crew}
    # Actors that still load, or have no place to start at, are not waited for.
    while queue is None or queue.waiting or any(batch for _, batch in at_work.values()):
        (ended,), _ = ray.wait(list(at_work))
        one, batch = at_work.pop(ended)
        try:
            ray.get(ended)
            queue = queue or _Queue(ray.get(_begun(one, "begin")))
        except ray.exceptions.RayActorError as error:
            if queue is None or batch is None:
                raise RuntimeError("An actor dies again and again before it has loaded its models.") from error
            queue.give_back(batch)
            at_work[_begun(one, "load")] = (one, None)
        else:
            idle.append(one)
            if batch is not None:
                yield queue.finish(batch)
        while queue is not None and queue.waiting and idle:
            one, batch = idle.pop(), queue.waiting.popleft()
            at_work[one.answer.remote(batch)] = (one, batch)


def _begun(one: Any, call: str) -> Any:
    """A call of an actor, which Ray makes again where the actor is started again."""
    return getattr(one, call).options(max_task_retries=_MOST_STARTS).remote()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is not installed: pip install 'fk-reward[ray]'.") from error
    if not ray.is_initialized():
        ray.init()
    return ray
