"""The progress of a command over prompts: what runs now, how far it is, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fk_reward.terminal import open_console, progress_bars, say
from fk_reward.text import shortened, visible

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.terminal import Progress, TaskID

SHOWN = 36
"""Characters of a prompt beside its bar."""


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(8.4), duration(75), duration(7260)
        ('8 s', '1:15 min', '2:01 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


class StepBar:
    """What a Diffusers pipeline takes for its tqdm bar; shows the steps of a pass in the bar of the prompt."""

    def __init__(self, bars: Progress, task: TaskID, *, iterable: Any = None, total: int | None = None) -> None:
        self._bars, self._task, self._iterable = bars, task, iterable
        bars.reset(task, total=total if iterable is None else len(iterable))

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: int = 1) -> None:
        """Count steps."""
        self._bars.advance(self._task, n)

    def set_postfix(self, **_values: Any) -> None:
        """Rewards and ESS are in the trace."""

    def close(self) -> None:
        """Nothing is held."""


class PromptProgress:
    """Bars of a run over prompts on a terminal; elsewhere, such as in a log file, a line for each finished prompt.

    Args:
        num_prompts: of the whole run.
        num_done: finished by an earlier command.
    """

    def __init__(self, num_prompts: int, num_done: int) -> None:
        self._num_prompts, self._num_done, self._first = num_prompts, num_done, num_done
        self._console = open_console(stderr=True)
        self._bars: Progress | None = progress_bars(self._console) if self._console.is_terminal else None
        self._started = time.monotonic()

    @contextmanager
    def watch(self, pipe: FKSteeringPipeline) -> Iterator[None]:
        """Show the steps of a pipeline in place of its own bar."""
        bars, wrapped = self._bars, pipe.pipe
        if bars is None:
            pipe.set_progress_bar_config(disable=True)
            yield
            return
        whole = bars.add_task("prompts", total=self._num_prompts, completed=self._num_done)
        self._task = bars.add_task("...", total=None)

        def progress_bar(iterable: Any = None, total: int | None = None) -> Any:
            return StepBar(bars, self._task, iterable=iterable, total=total)

        wrapped.progress_bar = progress_bar
        try:
            with bars:
                self._whole = whole
                yield
        finally:
            del wrapped.progress_bar

    @contextmanager
    def prompt(self, number: int, text: str) -> Iterator[None]:
        """A prompt is drawn.

        Args:
            number: counted from 1.
            text: the prompt.
        """
        label = f"{number} of {self._num_prompts}: {shortened(visible(text), SHOWN)}"
        if self._bars is not None:
            self._bars.update(self._task, description=label)
        yield
        self._num_done += 1
        if self._bars is not None:
            self._bars.update(self._whole, completed=self._num_done)
            return
        passed = time.monotonic() - self._started
        left = passed / (self._num_done - self._first) * (self._num_prompts - self._num_done)
        say(f"{label} ({duration(passed)}{f', about {duration(left)} left' if left else ''})", stderr=True)
