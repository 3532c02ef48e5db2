"""The terminal: the one module that uses rich, and that shows text as it was typed.

rich interprets `[red]`, `[/x]`, `:smile:` and numbers in every string, and passes control characters on to the
terminal. Prompts, file names and error messages must not be interpreted, so commands and reports print through the
functions of this file; a test keeps all other modules from importing rich. Write styles with `styled`.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import IO

from rich.console import Console, JustifyMethod
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Progress
from rich.progress import TaskID as TaskID
from rich.table import Table
from rich.text import Text

from fk_reward.text import visible

WIDTH_OF_FILES = 200
"""Columns of a table that goes to a file or a pipe, which have no width."""


def open_console(file: IO[str] | None = None, *, stderr: bool = False, quiet: bool = False) -> Console:
    """Open a console that interprets no markup, on the standard output unless another place is given.

    Args:
        file: where to write.
        stderr: write to the error stream.
        quiet: write nothing, for all but the first of several processes.
    """
    return Console(file=file, stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def wide_console() -> Console:
    """The terminal as it is; into a file or a pipe without folding the columns of a table."""
    console = open_console()
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    return console


def styled(*parts: str | tuple[str, str]) -> Text:
    r"""Text with a style, as a cell or a line: strings as they were typed, and pairs of a string and its style.

    Example:
        >>> styled("a [red] ", ("star", "green")).plain
        'a [red] star'
    """
    shown = (visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts)
    return Text.assemble(*shown)


class TextTable:
    r"""A table whose title, headings and cells are text as it was typed.

    Args:
        title: above the table, if any.
        show_header: whether the headings are shown.
        show_lines: whether there is a line between rows.

    Example:
        >>> table = TextTable()
        >>> table.add_column("prompt")
        >>> table.add_row("[cat|dog] :smile: \x1b")
        >>> table.print(Console(width=30))
        ┏━━━━━━━━━━━━━━━━━━━━━━━━┓
        ┃ prompt                 ┃
        ┡━━━━━━━━━━━━━━━━━━━━━━━━┩
        │ [cat|dog] :smile: \x1b │
        └────────────────────────┘
    """

    def __init__(self, title: str | None = None, *, show_header: bool = True, show_lines: bool = False) -> None:
        heading = styled(title) if title else None
        self._table = Table(title=heading, title_justify="left", show_header=show_header, show_lines=show_lines)

    def add_column(self, heading: str, *, right: bool = False, no_wrap: bool = False) -> None:
        """Add a column.

        Args:
            heading: its name.
            right: whether its cells are aligned to the right, as numbers.
            no_wrap: whether a cell stays in one line; others are folded, so that no word is lost.
        """
        justify: JustifyMethod = "right" if right else "left"
        self._table.add_column(styled(heading), justify=justify, overflow="fold", no_wrap=no_wrap)

    def add_row(self, *cells: str | Text, end_section: bool = False) -> None:
        """Add a row.

        Args:
            cells: one for each column: strings, or what `styled` made.
            end_section: whether a line is drawn below it.
        """
        texts = [styled(cell) if isinstance(cell, str) else cell for cell in cells]
        self._table.add_row(*texts, end_section=end_section)

    def print(self, console: Console | None = None) -> None:
        """Show the table, on the standard output unless a console is given."""
        (console or open_console()).print(self._table)


def say(text: str | Text, *, stderr: bool = False) -> None:
    """Write a line as it was typed, folded by the terminal alone, so that a path in it can be copied."""
    line = styled(text) if isinstance(text, str) else text
    open_console(stderr=stderr).print(line, soft_wrap=True)


def write_document(text: str) -> None:
    """Write a document, such as JSON or Markdown, on the standard output as it is, with a line break at its end."""
    # Not through rich, which folds lines at the width of the terminal.
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def say_error(error: BaseException | str) -> None:
    """Write an error of the user on the error stream; the line breaks of the message stay."""
    first, *others = str(error).split("\n")
    say(styled(("Error: ", "bold red"), first), stderr=True)
    for line in others:
        say(line, stderr=True)


def tolerate_any_text() -> None:
    r"""Let the standard streams write characters that their encoding lacks as escapes instead of raising.

    A terminal that is set to ASCII or Latin-1 has no ✓ and no 猫: a table of results must not end in a
    UnicodeEncodeError after the work.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # tests and notebooks replace the streams
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def quiet_loading() -> None:
    """Switch off the bars of Diffusers and transformers while models are read: a line of ours says what is loaded.

    Downloads keep theirs, which are the hub's.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()


_NO_TORCHVISION = re.compile(r"`\w+` requires torchvision \(not installed\)")


def drop_foreign_hints() -> None:
    """Keep transformers' advice to install torchvision from the terminal.

    Diffusers imports image processors with every pipeline, for which transformers then uses their Pillow twins; our
    own preprocessing needs neither, so there is nothing to do for whoever reads it.
    """
    logger = logging.getLogger("transformers.utils.import_utils")
    if _not_torchvision not in logger.filters:
        logger.addFilter(_not_torchvision)


def _not_torchvision(record: logging.LogRecord) -> bool:
    return _NO_TORCHVISION.search(record.getMessage()) is None


def log_handler() -> logging.Handler:
    """A handler that writes the messages of a logger on the error stream."""
    return _PlainHandler(
        console=open_console(stderr=True), show_time=False, show_level=False, show_path=False, markup=False
    )


def progress_bars(console: Console) -> Progress:
    """Bars with a label that is text, how many are done, and the time that has passed and is left."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


class _PlainHandler(RichHandler):
    """rich's handler without colours for numbers and paths, and with escapes for what would act on the terminal."""

    def render_message(self, record: logging.LogRecord, message: str) -> Text:
        return Text("\n".join(visible(line) for line in message.split("\n")))
