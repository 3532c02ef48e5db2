"""What somebody may have meant who wrote a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3, show: Callable[[str], str] = repr) -> str:
    """The names that look most like it, as a sentence to be put behind another one.

    Args:
        name: as it was written.
        known: what could have been written.
        limit: how many are named at most.
        show: how each of them is written.

    Returns:
        With a space in front; empty where nothing comes close.

    Example:
        >>> did_you_mean("ddim100", ["ddim-100", "lcm-4"])
        " Did you mean 'ddim-100'?"
        >>> did_you_mean("euler", ["ddim-100", "lcm-4"])
        ''
    """
    close = difflib.get_close_matches(name, list(known), n=limit)
    return f" Did you mean {', '.join(map(show, close))}?" if close else ""
