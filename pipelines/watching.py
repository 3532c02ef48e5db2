"""Watching a call while it runs: previews, rewards and ancestors of each scoring step, as they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fk_reward.sampling.trace import TraceStep

StepWatcher = Callable[[TraceStep], None]

_WATCHERS: ContextVar[tuple[StepWatcher, ...]] = ContextVar("step_watchers", default=())
"""Of the `watch_steps` blocks that this thread is in."""


@contextmanager
def watch_steps(watcher: StepWatcher) -> Iterator[None]:
    """Tell a function of every scoring step of the calls that this thread makes in the block, the final one last.

    Args:
        watcher: gets the `TraceStep` as it will stand in the trace, after the particles were weighed and ancestors
            drawn. What it raises ends the call, with pipeline and scheduler as before: so a run can be stopped.

    Example:
        >>> from fk_reward import FKSteeringPipeline
        >>> pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-verifier")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with watch_steps(lambda step: print(step.step, step.num_particles, step.final)):
        ...     out = pipe("a photo of a circle", num_particles=2, num_inference_steps=3, num_resamples=1)
        1 2 False
        3 2 True
    """
    token = _WATCHERS.set((*_WATCHERS.get(), watcher))
    try:
        yield
    finally:
        _WATCHERS.reset(token)


def tell(step: TraceStep) -> None:
    """Hand a step to whoever watches."""
    for watcher in _WATCHERS.get():
        watcher(step)
