"""Progress of a stage with the time left: a bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from fk_reward.benchmarks.geneval.stages import Step
from fk_reward.terminal import Console, progress_bars, styled
from fk_reward.text import visible

SECONDS_BETWEEN_LINES = 60.0


def watch(steps: Iterable[Step], *, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
    """Run through the steps of a stage and show how far it is.

    Args:
        steps: of a stage.
        console: where to; on one that is no terminal a line is written each minute and at the end of each label.
        clock: seconds.

    Example:
        >>> watch([Step("fk: pictures", 1, 2), Step("fk: pictures", 2, 2)], console=Console(width=80))
        fk: pictures: 2/2, 0 min left
    """
    if console.is_terminal:
        _show_bars(steps, console)
    else:
        _write_lines(steps, console, clock)


def _show_bars(steps: Iterable[Step], console: Console) -> None:
    with progress_bars(console) as bars:
        tasks = {}
        for step in steps:
            if step.label not in tasks:
                tasks[step.label] = bars.add_task(visible(step.label), total=step.todo)
            bars.update(tasks[step.label], completed=step.done)


def _write_lines(steps: Iterable[Step], console: Console, clock: Callable[[], float]) -> None:
    label, started, written = "", clock(), clock()
    for step in steps:
        now = clock()
        if step.label != label:
            label, started = step.label, written  # the first piece of a label has been worked at since the last line
        if step.done == step.todo or now - written >= SECONDS_BETWEEN_LINES:
            left = (now - started) / step.done * (step.todo - step.done) / 60
            console.print(styled(f"{step.label}: {step.done}/{step.todo}, {left:.0f} min left"))
            written = now
