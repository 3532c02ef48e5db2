"""How mistakes of the user are told, by all commands: the message alone, on the error stream, with exit code 2."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from fk_reward.terminal import say_error

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
"""What the library raises on wrong input, absent or unusable files, missing packages and diverging trainings."""
SHOW_TRACEBACK = "FK_REWARD_TRACEBACK"
"""Environment variable: any value keeps the tracebacks."""
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class CleanGroup(TyperGroup):
    """The group of all commands: whatever is called in it, however deep, runs in `clean_errors`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with clean_errors():
            return super().invoke(ctx)


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn the errors that the library raises on wrong input into one message and exit code 2.

    Other exceptions are defects of the program and keep their traceback; with `FK_REWARD_TRACEBACK=1` in the
    environment all do.

    Raises:
        typer.Exit: with code 2, in place of one of `USER_ERRORS`, or of an error of a judge's endpoint.

    Example:
        >>> with clean_errors():
        ...     raise TypeError("a defect")
        Traceback (most recent call last):
        TypeError: a defect
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough, which typer knows how to end
        raise
    except Exception as error:
        if not _is_mistake(error) or os.environ.get(SHOW_TRACEBACK):
            raise
        say_error(_message(error))
        raise typer.Exit(code=2) from error


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, USER_ERRORS):
        return True
    from fk_reward.rewards.vlm_judge.engine import JudgeEndpointError

    return isinstance(error, JudgeEndpointError)


def _message(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _FULL:
        text += ". Make room and start the same command again."
    return text
