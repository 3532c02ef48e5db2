"""Lists and shares of the work as a person types them on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def parse_choices(name: str, text: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Words separated by commas, each once and in the order in which they were typed.

    Args:
        name: of the option, for the error message.
        text: for instance `"float32,bfloat16"`.
        choices: the words that there are.

    Raises:
        typer.BadParameter: for a word that is not among them.

    Example:
        >>> parse_choices("dtype", "float32, bfloat16", ["bfloat16", "float16", "float32"])
        ('float32', 'bfloat16')
    """
    words = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [word for word in words if word not in choices]:
        raise typer.BadParameter(f"{name} should be of {', '.join(choices)}, separated by commas; got {unknown[0]!r}.")
    return words


def parse_shard(text: str) -> tuple[int, int]:
    """Index and number of processes, as typed: `"0/2"`.

    Raises:
        typer.BadParameter: for anything else.

    Example:
        >>> parse_shard("1/2")
        (1, 2)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise typer.BadParameter(f"shard should be i/n with 0 <= i < n, got {text!r}.")
    return int(match[1]), int(match[2])
