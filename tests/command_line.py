"""Command lines run in this process, for the tests of every command."""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TextIO

from fk_reward import cli


@dataclass(frozen=True)
class Result:
    """What a command line came to.

    Attributes:
        exit_code: 0, that of `SystemExit`, or 1 after any other exception.
        stdout: what it wrote there.
        stderr: what it wrote there.
        output: both, in their order.
        exception: what it ended with, `SystemExit` of 0 excepted.
    """

    exit_code: int
    stdout: str
    stderr: str
    output: str
    exception: BaseException | None


class _Tee(io.StringIO):
    """A stream that also writes into that of both."""

    def __init__(self, both: TextIO) -> None:
        super().__init__()
        self._both = both

    def write(self, text: str) -> int:
        self._both.write(text)
        return super().write(text)


def run_command_line(*arguments: object) -> Result:
    """Run `fk-reward` with these arguments; no process is started."""
    return captured(lambda: cli.main([str(argument) for argument in arguments]))


def run_script(script: Callable[..., None], *arguments: object) -> Result:
    """Run the `main` of a script of examples/ as its command line does."""
    return captured(lambda: cli.run_script(script, [str(argument) for argument in arguments]))


def captured(call: Callable[[], None]) -> Result:
    """What a call writes, and how it ends."""
    both = io.StringIO()
    out, err = _Tee(both), _Tee(both)
    code, exception = 0, None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            call()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
            exception = left if code else None
        except BaseException as error:  # noqa: BLE001 (a test looks at it)
            code, exception = 1, error
            traceback.print_exc()
    return Result(code, out.getvalue(), err.getvalue(), both.getvalue(), exception)
