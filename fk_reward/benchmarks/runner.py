"""Run a task: answer what is missing, in batches, in all processes that share the work, and show the progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from accelerate import PartialState

from fk_reward.benchmarks.task import Method, Task
from fk_reward.output_folder import hold_folder, hold_folder_together
from fk_reward.terminal import Console, progress_bars, styled
from fk_reward.text import visible
from fk_reward.value_checks import whole_number

LONGEST_WAIT = timedelta(days=7)
"""How long a process waits for the others at the end of a stage: their shares may take longer by hours."""

SECONDS_BETWEEN_LINES = 60.0

Item = TypeVar("Item")


class Progress(NamedTuple):
    """Progress of a process.

    Attributes:
        label: name of the work.
        done: items that this process has done.
        todo: items that it had to do.
    """

    label: str
    done: int
    todo: int


@dataclass(frozen=True)
class Share:
    """The part of the work of one process.

    Attributes:
        shard: index and number of the processes.
        launched: whether accelerate launched them, so that they can wait for each other.
        ray_workers: Ray actors that answer in place of this process; None for no Ray.
        num_gpus: of each actor.

    Example:
        >>> Share((1, 3)).part(range(7))
        [1, 4]
    """

    shard: tuple[int, int] = (0, 1)
    launched: bool = False
    ray_workers: int | None = None
    num_gpus: float = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process reports: the only one, or the first of those that wait for each other."""
        return self.shard[1] == 1 or (self.launched and self.shard[0] == 0)

    @property
    def name(self) -> str:
        """Name of this process, different from those of the others."""
        return f"{self.shard[0]}-of-{self.shard[1]}"

    def part(self, items: Sequence[Item]) -> list[Item]:
        """Every n-th item, beginning at this process's index."""
        return list(items[self.shard[0] :: self.shard[1]])

    def hold(self, folder: Path) -> AbstractContextManager[Path]:
        """Keep the folder of the results for this process, or for all that were launched; see `hold_folder`."""
        if self.launched:
            return hold_folder_together(folder, PartialState())
        return hold_folder(folder, share=self.shard)

    def first(self) -> AbstractContextManager[None]:
        """Let the first of the launched processes run the block before the others."""
        return PartialState().main_process_first() if self.launched else nullcontext()

    def wait(self) -> None:
        """Wait until all processes that accelerate launched have arrived here."""
        if self.launched:
            PartialState().wait_for_everyone()


def find_share(shard: tuple[int, int] | None, device: str, ray_workers: int | None = None) -> Share:
    """Find the part of this process.

    Args:
        shard: index and number of processes that share the work without knowing of each other; None for the place
            among those that `accelerate launch` started.
        device: "cpu" or "cuda"; accelerate must be told not to use GPUs.
        ray_workers: Ray actors that answer in place of this process, each with a GPU unless the device is the CPU.

    Raises:
        ValueError: processes were launched that accelerate cannot see, which would all do the same work; or actors and
            processes share the work.

    Example:
        >>> find_share((1, 2), "cpu").name
        '1-of-2'
    """
    if ray_workers is not None:
        return _actors(ray_workers, device, alone=shard is None and int(os.environ.get("WORLD_SIZE", "1")) == 1)
    if shard is not None:
        return Share(shard)
    state = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
    launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but accelerate sees {state.num_processes}, and each would do all "
            f"the work. Start them with `accelerate launch --num_processes {launched}`."
        )
    return Share((state.process_index, state.num_processes), launched=state.num_processes > 1)


def _actors(number: int, device: str, *, alone: bool) -> Share:
    whole_number("--ray-workers", number, minimum=1)
    if not alone:
        raise ValueError("--ray-workers shares the work among actors: start one process, without --shard.")
    return Share(ray_workers=number, num_gpus=0.0 if device == "cpu" else 1.0)


def written_stages(stages: Iterable[str], out: Path) -> set[str]:
    """Those of the stages that write into the folder of a run; a report may be looked at while others work.

    Raises:
        NotADirectoryError: there is no such folder, and no stage that makes it. Holding a folder makes it, so that this
            is asked before.

    Example:
        >>> sorted(written_stages(("generate", "judge", "report"), Path("new")))
        ['generate', 'judge']
    """
    if "generate" not in stages and not out.is_dir():
        raise NotADirectoryError(f"There is no folder {out}.")
    return {"generate", "judge"} & set(stages)


def within(folder: str, steps: Iterable[Progress]) -> Iterator[Progress]:
    """Progress that names the folder of its work, where runs of one name are in several."""
    for step in steps:
        yield step._replace(label=f"{folder}: {step.label}")


class Store(Protocol):
    """Where answers are kept, so that a run can be stopped, resumed and shared."""

    def begin(self, method: Any, /) -> None:
        """Prepare for a method's answers; raise a ValueError if there are answers of other settings."""

    def missing(self, method: Any, samples: Sequence[Any], indices: Sequence[int], /) -> list[int]:
        """Those of some samples that the method has not answered."""

    def write(self, method: Any, indices: Sequence[int], samples: Sequence[Any], answers: Sequence[Any], /) -> None:
        """Keep the answers to a batch of samples; when this returns they are on disk."""


class Work(NamedTuple):
    """A task, who answers it, and where the answers go.

    Attributes:
        task: the benchmark.
        methods: who answers.
        store: answers so far.
        folder: that the progress names, where there are several works.
    """

    task: Task[Any]
    methods: Sequence[Method[Any, Any]]
    store: Store
    folder: str = ""


Bind: TypeAlias = Callable[[str], Sequence[Work]]
"""Loads the models of some works, given a name for the files of this process; `fk_reward.benchmarks.works` calls it."""


def run(
    task: Task[Any], methods: Sequence[Method[Any, Any]], store: Store, *, share: Share = Share()
) -> Iterator[Progress]:
    """Let each method answer the samples that the store has no answer to.

    Every method is prepared in the store before the first answer. What was answered is never asked again, whichever
    process answered it: to resume an interrupted run, start it again.

    Args:
        task: the benchmark.
        methods: who answers.
        store: answers so far; each batch is written before the next one begins.
        share: the part of this process, every n-th sample.

    Yields:
        After each batch: the progress of this process.

    Raises:
        ValueError: before the first answer, if the store holds answers of other settings.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from types import SimpleNamespace
        >>> from fk_reward.benchmarks.store import ResultStore
        >>> def square(indices, samples):
        ...     return [{"square": sample**2} for sample in samples]
        >>> task = Task("squares", (1, 2, 3), judge=max)
        >>> method = SimpleNamespace(name="square", batch_size=2, answer=square)
        >>> with TemporaryDirectory() as folder:
        ...     for _ in range(2):  # the second run finds nothing to do
        ...         [tuple(progress) for progress in run(task, [method], ResultStore(folder, {}))]
        [('square', 2, 3), ('square', 3, 3)]
        []
    """
    for method in methods:
        with share.first():  # one process writes the settings, and the others compare theirs with them
            store.begin(method)
    for method in methods:
        todo = store.missing(method, task.samples, share.part(range(len(task.samples))))

        def answer(indices: Sequence[int], method: Method[Any, Any] = method) -> None:
            answer_samples(task, method, store, indices)

        yield from in_batches(method.name, todo, answer, batch_size=method.batch_size)
    share.wait()


def answer_samples(task: Task[Any], method: Method[Any, Any], store: Store, indices: Sequence[int]) -> None:
    """Let a method answer some samples in one call, and keep the answers."""
    samples = [task.samples[index] for index in indices]
    store.write(method, indices, samples, method.answer(indices, samples))


def in_batches(
    label: str,
    todo: Sequence[Item],
    work: Callable[[list[Item]], None],
    *,
    batch_size: int = 1,
    size_of: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Progress]:
    """Work on a few items at a time.

    Args:
        label: of the progress.
        todo: the items.
        work: processes a batch.
        batch_size: sum of the sizes in a batch; a larger item is a batch of its own.
        size_of: size of an item.

    Yields:
        After each batch: how many items are done.
    """
    batch: list[Item] = []
    size, done = 0, 0
    for item in todo:
        if batch and size + size_of(item) > batch_size:
            work(batch)
            done += len(batch)
            yield Progress(label, done, len(todo))
            batch, size = [], 0
        batch.append(item)
        size += size_of(item)
    if batch:
        work(batch)
        yield Progress(label, len(todo), len(todo))


def watch(steps: Iterable[Progress], *, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
    """Run through the steps of a run and show its progress, with the time left.

    Args:
        steps: of a run.
        console: where to: a bar on a terminal; elsewhere a line each minute and at the end of each label.
        clock: seconds.

    Example:
        >>> watch([Progress("fk: images", 1, 2), Progress("fk: images", 2, 2)], console=Console(width=80))
        fk: images: 2/2, 0 min left
    """
    if console.is_terminal:
        _show_bars(steps, console)
    else:
        _write_lines(steps, console, clock)


def _show_bars(steps: Iterable[Progress], console: Console) -> None:
    with progress_bars(console) as bars:
        tasks = {}
        for step in steps:
            if step.label not in tasks:
                tasks[step.label] = bars.add_task(visible(step.label), total=step.todo)
            bars.update(tasks[step.label], completed=step.done)


def _write_lines(steps: Iterable[Progress], console: Console, clock: Callable[[], float]) -> None:
    label, started, written = "", clock(), clock()
    for step in steps:
        now = clock()
        if step.label != label:
            label, started = step.label, written  # work on the first item of a label began at the last line
        if step.done == step.todo or now - written >= SECONDS_BETWEEN_LINES:
            left = (now - started) / step.done * (step.todo - step.done) / 60
            console.print(styled(f"{step.label}: {step.done}/{step.todo}, {left:.0f} min left"))
            written = now
