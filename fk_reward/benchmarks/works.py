"""Run the works of a benchmark where they are to be run: in this process, or by actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator

from fk_reward.benchmarks.ray_workers import run_on_ray
from fk_reward.benchmarks.runner import Bind, Progress, Share, run, within


def run_works(bind: Bind, *, share: Share) -> Iterator[Progress]:
    """Run some works one after the other, or batch by batch by the Ray actors of the share.

    Args:
        bind: loads the models, here or in each actor; it is sent to actors, so that it has to be one of a module, or
            `functools.partial` of one.
        share: the part of this process, or how many actors.

    Yields:
        After each batch: the progress of this process, or of all actors.

    Raises:
        ImportError: actors, and Ray is not installed.
        ValueError: before the first answer, if a store holds answers of other settings.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> from fk_reward.benchmarks.runner import Work
        >>> from fk_reward.benchmarks.store import ResultStore
        >>> from fk_reward.benchmarks.task import Task
        >>> def square(indices, samples):
        ...     return [{"square": sample**2} for sample in samples]
        >>> method = SimpleNamespace(name="square", batch_size=2, answer=square)
        >>> with TemporaryDirectory() as folder:
        ...     def bind(writer):
        ...         store = ResultStore(folder, {}, writer=writer)
        ...         return [Work(Task("squares", (1, 2, 3), judge=max), [method], store, "here")]
        ...     [tuple(progress) for progress in run_works(bind, share=Share())]
        [('here: square', 2, 3), ('here: square', 3, 3)]
    """
    if share.ray_workers is not None:
        yield from run_on_ray(bind, num_workers=share.ray_workers, num_gpus=share.num_gpus)
        return
    for task, methods, store, folder in bind(share.name):
        steps = run(task, methods, store, share=share)
        yield from within(folder, steps) if folder else steps
