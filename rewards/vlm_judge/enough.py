"""When an answer says all that its reader needs, so that the rest of it need not be written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True)
class Enough:
    """Where an answer may end before its writer ends it.

    A reader must find the same in what `close` returns as in any readable continuation of it. What a whole answer has
    after that place is not checked: a second JSON object there, for instance, is no longer an error.

    Attributes:
        close: for an answer so far, a text that can be read in its place; None while something is missing.
        stop: what a writer who keeps to the form writes right after that, for endpoints, which know strings alone.

    Example:
        >>> import functools
        >>> enough = Enough(close=functools.partial(close_object, keys=["rating"]), stop=('"rationale"',))
        >>> enough.close('{"rating": "Sa'), enough.close('{"rating": "Safe", "rationale": "Nothing')
        (None, '{"rating": "Safe"}')
    """

    close: Callable[[str], str | None]
    stop: tuple[str, ...] = ()


def close_object(answer: str, *, keys: Collection[str]) -> str | None:
    """End the JSON object of an answer after the last of some fields; None while one of them is not complete.

    A number is complete once something follows that is no part of it.

    Args:
        answer: so far; a leading `<think>` block is passed over.
        keys: the fields, in any order.

    Example:
        >>> close_object('{"alignment": 1', keys=["alignment"]) is None  # it may become 10
        True
        >>> close_object('{"alignment": 10, "qua', keys=["alignment"])
        '{"alignment": 10}'
    """
    start = thought_end(answer)
    place = -1 if start is None else answer.find("{", start)
    if place < 0:
        return None
    missing = set(keys)
    for key, end in _complete_fields(answer, place + 1):
        missing.discard(key)
        if not missing:
            return answer[:end] + "}"
    return None


def close_match(answer: str, *, pattern: re.Pattern[str]) -> str | None:
    r"""Return an answer up to the end of the first match of a pattern; None while there is none.

    Args:
        answer: so far.
        pattern: one whose first match no continuation changes.

    Example:
        >>> close_match("Yes, ther", pattern=re.compile(r"\w+(?=\W)"))
        'Yes'
    """
    found = pattern.search(answer)
    return None if found is None else answer[: found.end()]


def thought_end(answer: str) -> int | None:
    """Place after a leading `<think>` block: 0 without one, None while it is open.

    Example:
        >>> thought_end("<think>so</think>1"), thought_end("1"), thought_end("<think>so")
        (17, 0, None)
    """
    thought = _THOUGHT.match(answer)
    end = thought.end() if thought else 0
    return None if answer[end:].lstrip().startswith("<think>") else end


def _complete_fields(text: str, place: int) -> Iterator[tuple[str, int]]:
    """Keys of an object, from after its brace, each with the end of its value; up to what is broken or not complete."""
    following = ","
    while following == ",":
        try:
            key, place = _DECODER.raw_decode(text, _next(text, place))
            colon = _next(text, place)
            value, place = _DECODER.raw_decode(text, _next(text, colon + 1))
        except (ValueError, RecursionError):
            return
        end, place = place, _next(text, place)
        following = text[place : place + 1]
        is_open = following == "" and isinstance(value, int | float)  # further digits may follow
        if not isinstance(key, str) or text[colon] != ":" or is_open or following not in ("", ",", "}"):
            return
        yield key, end
        place += 1


def _next(text: str, place: int) -> int:
    """Place of the next character that is not blank."""
    while place < len(text) and text[place] in " \t\n\r":
        place += 1
    return place
