"""Lists of numbers as a person types them on the command line."""

from __future__ import annotations

import typer


def parse_integers(name: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers separated by commas, ascending, each once.

    Args:
        name: of the option, for the error message.
        text: for instance `"2,4,8"`.

    Raises:
        typer.BadParameter: for anything else.

    Example:
        >>> parse_integers("num_particles", "8, 2,4")
        (2, 4, 8)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{name} should be positive whole numbers separated by commas, got {text!r}.")
    return tuple(sorted({int(part) for part in parts}))
