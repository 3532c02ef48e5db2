"""A composition's text as Python code: names of rewards, which hold '-', '.' and '@', become identifiers."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from fk_reward.rewards.composition.errors import ExpressionError

MAX_TOKENS = 5000
"""Names, numbers and signs of a composition: more than a thousand weighted terms."""

MAX_DEPTH = 50
"""Levels of brackets, functions, signs and gates inside one another; sums and products of any length are one level."""

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
        ExpressionError: for a character that has no meaning, an empty text, and one that is too long or too deep.

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
        self._identifiers: dict[str, str] = {}
        tokens = list(_close_gates(list(self._tokens()), len(text)))
        if not tokens:
            raise ExpressionError("A composition needs at least one reward.", text, 0)
        self._check_size(tokens)
        self.code = " ".join(token.code for token in tokens)
        self._starts = list(accumulate((len(token.code) + 1 for token in tokens), initial=0))[:-1]
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
        identifier = self._identifiers.setdefault(text, f"_{len(self._identifiers)}")
        self.words[identifier] = text
        return identifier

    def _check_size(self, tokens: list[_Token]) -> None:
        """Bounds that are far above any composition, and below what Python's parser ends at with errors of its own."""
        if len(tokens) > MAX_TOKENS:
            message = f"A composition has at most {MAX_TOKENS:,} names, numbers and signs, got {len(tokens):,}."
            raise ExpressionError(message, self.text, tokens[MAX_TOKENS].place)
        depth = 0
        for token in tokens:
            depth += {"(": 1, ")": -1}.get(token.code, 0)
            if depth > MAX_DEPTH:
                raise ExpressionError(f"Brackets may be nested {MAX_DEPTH} deep.", self.text, token.place)


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
