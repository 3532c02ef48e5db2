"""A composition's text as Python code: names of rewards, which hold '-', '.' and '@', become identifiers."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from fk_reward.rewards.composition.errors import ExpressionError

NAME = r"[A-Za-z_](?:[\w.@-]*\w)?"
"""A name of a reward inside a composition."""

_TOKEN = re.compile(
    rf"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>{NAME})|(?P<symbol><=|>=|[-+*/()<>,=])", re.ASCII
)


@dataclass(frozen=True)
class _Token:
    """A piece of code and its place in the text."""

    code: str
    place: int


class Source:
    """The text, the code that stands for it, and the way back.

    A gate without `else` gets `else ...`, Python's ellipsis, which the text itself cannot hold.

    Attributes:
        text: what was written.
        code: for `ast.parse`.
        words: identifiers in the code -> names in the text.

    Args:
        text: a composition.

    Raises:
        ExpressionError: for a character that has no meaning, or an empty text.

    Example:
        >>> source = Source("2*clip-score if hpsv2.1 > 0")
        >>> source.code, source.words
        ('2.0 * _0 if _1 > 0.0 else ...', {'_0': 'clip-score', '_1': 'hpsv2.1'})
        >>> source.place(6)
        2
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.words: dict[str, str] = {}
        tokens = list(_close_gates(list(self._tokens()), len(text)))
        if not tokens:
            raise ExpressionError("A composition needs at least one reward.", text, 0)
        self.code = " ".join(token.code for token in tokens)
        lengths = [len(token.code) + 1 for token in tokens]
        self._starts = [sum(lengths[:i]) for i in range(len(tokens))]
        self._places = [token.place for token in tokens]

    def place(self, column: int) -> int:
        """The place in the text of a column of the code."""
        if column >= len(self.code):
            return len(self.text)
        return self._places[max(0, bisect.bisect_right(self._starts, column) - 1)]

    def _tokens(self) -> Iterator[_Token]:
        position = 0
        while position < len(self.text):
            if self.text[position].isspace():
                position += 1
                continue
            match = _TOKEN.match(self.text, position)
            if match is None:
                raise ExpressionError(f"{self.text[position]!r} has no meaning here.", self.text, position)
            yield _Token(self._code(match), position)
            position = match.end()

    def _code(self, match: re.Match[str]) -> str:
        text = match[0]
        if match["number"]:
            number = float(text)
            if number == float("inf"):
                raise ExpressionError(f"The number {text} is too large.", self.text, match.start())
            return repr(number)
        if match["symbol"] or text in ("if", "else"):
            return text
        identifier = next((key for key, word in self.words.items() if word == text), f"_{len(self.words)}")
        self.words[identifier] = text
        return identifier


def _close_gates(tokens: list[_Token], end: int) -> Iterator[_Token]:
    """Put `else ...` where a bracket, an argument or the text ends and an `if` still waits for its else."""
    waiting = [0]
    for token in [*tokens, _Token("", end)]:
        if token.code in (")", ",", ""):
            for _ in range(waiting[-1]):
                yield from (_Token("else", token.place), _Token("...", token.place))
            waiting[-1] = 0
        if token.code == "(":
            waiting.append(0)
        elif token.code == ")" and len(waiting) > 1:
            waiting.pop()
        waiting[-1] += {"if": 1, "else": -1}.get(token.code, 0)
        if token.code:
            yield token
