"""How mistakes of the user are told: the message alone, on the error stream, with exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fk_reward.terminal import say_error

USER_ERRORS = (ValueError, OSError, ImportError)


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn the errors that the library raises on wrong input into one message and exit code 2.

    Other exceptions are defects of the program and keep their traceback.

    Raises:
        typer.Exit: with code 2, in place of a ValueError, OSError (a missing file, model or connection) or ImportError.

    Example:
        >>> with clean_errors():
        ...     raise TypeError("a defect")
        Traceback (most recent call last):
        TypeError: a defect
    """
    try:
        yield
    except USER_ERRORS as error:
        say_error(error)
        raise typer.Exit(code=2) from error
