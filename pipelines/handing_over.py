"""Work that is handed over, so that what follows need not wait for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar

import torch

T = TypeVar("T")
HandOver: TypeAlias = Callable[..., Callable[[], T]]
"""Arguments of a piece of work, to a function that gives its result."""


@contextmanager
def handing_over(work: Callable[..., T], *, aside: bool, device_type: str = "cpu") -> Iterator[HandOver[T]]:
    """Do pieces of work one after the other, in a thread beside the caller's or when their results are asked for.

    A thread of its own lets the work wait for its device, or for a server, while the caller goes on. Gradient,
    inference and autocast modes, which belong to a thread, are the caller's.

    Args:
        work: the function.
        aside: whether there is a thread; without one a piece of work begins when its result is asked for.
        device_type: where the work is done, `"cpu"`, `"cuda"`, ...

    Yields:
        What takes the arguments of a piece of work and returns a function without arguments: the result, or the error
        that the work ended with. On leaving, what has not begun is dropped.

    Example:
        >>> with handing_over(lambda x: 2 * x, aside=True) as hand_over:
        ...     results = [hand_over(x) for x in (1, 2)]
        ...     [result() for result in results]
        [2, 4]
    """
    if not aside:
        yield lambda *args: functools.partial(work, *args)
        return
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fk-reward")
    in_modes = _in_modes_of_caller(work, device_type)
    try:
        yield lambda *args: executor.submit(in_modes, *args).result
    finally:
        executor.shutdown(cancel_futures=True)


def _in_modes_of_caller(work: Callable[..., T], device_type: str) -> Callable[..., T]:
    gradient, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else None

    def run(*args: Any) -> T:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(inference))
            modes.enter_context(torch.set_grad_enabled(gradient))
            if autocast:
                modes.enter_context(torch.autocast(device_type, dtype=dtype))
            return work(*args)

    return run
