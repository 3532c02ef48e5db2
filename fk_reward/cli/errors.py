"""How mistakes of the user are reported, by all commands and scripts: the message alone, with exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fk_reward.terminal import say_error

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
"""What the library raises on wrong input, absent or unusable files, missing packages and diverging trainings."""
SHOW_TRACEBACK = "FK_REWARD_TRACEBACK"
"""Environment variable: any value keeps the tracebacks."""
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn the errors that the library raises on wrong input into one message and exit code 2.

    Other exceptions are defects of the program and keep their traceback; with `FK_REWARD_TRACEBACK=1` in the
    environment all do.

    Raises:
        SystemExit: with code 2, in place of one of `USER_ERRORS`, or of an error of a judge's endpoint.

    Example:
        >>> with clean_errors():
        ...     raise TypeError("a defect")
        Traceback (most recent call last):
        TypeError: a defect
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough; Python would fail once more when it flushes at exit
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        say_error("interrupted.")
        raise SystemExit(130) from error  # 128 + SIGINT, as shells say it
    except Exception as error:
        if not _is_mistake(error) or os.environ.get(SHOW_TRACEBACK):
            raise
        say_error(_message(error))
        raise SystemExit(2) from error


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
