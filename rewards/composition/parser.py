"""Reads a composition's text: names and numbers are found first, Python's own parser does the rest, nothing is run."""

from __future__ import annotations

import ast
import bisect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.composition.expression import (
    EXTREMES,
    Expression,
    Part,
    WeightedSum,
    make_extreme,
    make_gate,
    make_number,
    make_standardized,
    weighted_sum,
)

_SHOWN = 240
"""Letters of a long text that are shown, the mistake in their middle."""

MAX_TOKENS = 5000
"""Names, numbers and signs of a composition: more than a thousand weighted terms."""

MAX_DEPTH = 50
"""Levels of brackets, functions, signs and gates inside one another; sums and products of any length are one level."""

NAME = r"[A-Za-z_](?:[\w.@-]*\w)?"
"""A name of a reward inside a composition."""

_TOKEN = re.compile(
    rf"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>{NAME})|(?P<symbol><=|>=|[-+*/()<>,=])", re.ASCII
)

GRAMMAR = (
    "A composition is made of rewards, numbers, brackets, + - * /, min(a, b), max(a, b), z(a), z(a, mean=0, spread=1) "
    "and a if b > 0 else c; a minus between names has spaces around it."
)
_TOO_DEEP = f"A composition may be nested {MAX_DEPTH} deep."
_SUM, _PRODUCT = (ast.Add, ast.Sub), (ast.Mult, ast.Div)
_COMPARISONS: dict[type[ast.cmpop], str] = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="}


class ExpressionError(ValueError):
    """A composition's text is not understood, or means something that cannot be computed.

    Attributes:
        text: the expression.
        position: 0-based place of the mistake in it.

    Example:
        >>> raise ExpressionError("Expected a number.", "2 * ?", 4)
        Traceback (most recent call last):
        fk_reward.rewards.composition.parser.ExpressionError: Expected a number.
          2 * ?
              ^
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        start = max(0, position - _SHOWN // 2)
        line = "".join(" " if letter.isspace() else letter for letter in text[start : start + _SHOWN])
        before, after = "... " if start else "", " ..." if start + _SHOWN < len(text) else ""
        super().__init__(f"{message}\n  {before}{line}{after}\n  {' ' * (len(before) + position - start)}^")
        self.text, self.position = text, position


@dataclass(frozen=True)
class _Token:
    """A piece of code and its place in the text."""

    code: str
    place: int


class Source:
    """The text, the Python code made from it, and the way back.

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
        # Far above any real composition, and below the limits at which Python's parser raises its own errors.
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


def is_composition(text: str) -> bool:
    """Whether a text that is not a known name is meant as a composition: it has a character that names do not have.

    Example:
        >>> [is_composition(text) for text in ("a + b", "-a", "min(a)", "hpsv2.1", "a-reward@qwen", "")]
        [True, True, True, False, False, False]
    """
    return re.search(r"[\s+*/()<>=,]|^[-\d.]", text) is not None


def parse_expression(text: str, card_of: Callable[[str], RewardCard]) -> tuple[Expression, dict[str, RewardCard]]:
    """Read a composition.

    Args:
        text: such as "0.7*a + 0.3*b".
        card_of: the card of a name; a ValueError for one that is not known.

    Returns:
        The expression, and the cards of the names in it.

    Raises:
        ExpressionError: a ValueError that shows the place.

    Example:
        >>> from fk_reward.rewards.registry import reward_card
        >>> expression, cards = parse_expression("2*(clipscore - 0.5)", reward_card)
        >>> print(expression, list(cards))
        2*clipscore - 1 ['clipscore']
    """
    source = Source(text)
    try:
        tree = ast.parse(source.code, mode="eval")
    except SyntaxError as error:
        raise ExpressionError(_syntax_message(error), text, source.place((error.offset or 1) - 1)) from error
    except (RecursionError, MemoryError) as error:  # Python's errors for code that is nested too deeply
        raise ExpressionError(_TOO_DEEP, text, source.place(0)) from error
    reader = _Reader(source, card_of)
    expression = reader.read(tree.body)
    if not expression.names:
        raise ExpressionError("A composition needs at least one reward.", text, source.place(0))
    return expression, reader.cards


def _syntax_message(error: SyntaxError) -> str:
    # Python's own messages are kept where they are about brackets; the others are about Python.
    about_brackets = "never closed" in error.msg or "unmatched" in error.msg
    return f"{error.msg.capitalize() if about_brackets else 'This is not allowed here'}. {GRAMMAR}"


class _Reader:
    """Turns a syntax tree into an expression; each kind of node that is known has a method."""

    def __init__(self, source: Source, card_of: Callable[[str], RewardCard]) -> None:
        self.cards: dict[str, RewardCard] = {}
        self._depth = 0
        self._source = source
        self._card_of = card_of
        self._readers: Mapping[type[ast.AST], Callable[..., Expression]] = {
            ast.BinOp: self._binary,
            ast.Call: self._call,
            ast.Constant: self._number,
            ast.IfExp: self._gate,
            ast.Name: self._name,
            ast.UnaryOp: self._unary,
        }

    def read(self, node: ast.expr) -> Expression:
        """Read one node; errors show its place in the text."""
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise ValueError(_TOO_DEEP)
            if type(node) not in self._readers:
                raise ValueError(f"This is not allowed here. {GRAMMAR}")
            return self._readers[type(node)](node)
        except ExpressionError:
            raise
        except ValueError as error:
            raise ExpressionError(str(error), self._source.text, self._source.place(node.col_offset)) from error
        finally:
            self._depth -= 1

    def _name(self, node: ast.Name) -> Expression:
        name = self._source.words[node.id]
        if name not in self.cards:
            self.cards[name] = self._card_of(name)
        return Part(name)

    def _number(self, node: ast.Constant) -> Expression:
        value: Any = node.value
        return make_number(float(value))

    def _unary(self, node: ast.UnaryOp) -> Expression:
        sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
        return weighted_sum([(sign, self.read(node.operand))])

    def _binary(self, node: ast.BinOp) -> Expression:
        """A sum or a product of any length at once: the tree of a + b + c + ... is as deep as it has terms."""
        kinds = next((kinds for kinds in (_SUM, _PRODUCT) if isinstance(node.op, kinds)), None)
        if kinds is None:
            raise ValueError(f"This is not allowed here. {GRAMMAR}")
        operands: list[tuple[ast.operator, ast.expr]] = []
        first: ast.expr = node
        while isinstance(first, ast.BinOp) and isinstance(first.op, kinds):
            operands.append((first.op, first.right))
            first = first.left
        start, others = self.read(first), operands[::-1]
        if kinds is _PRODUCT:
            return reduce(lambda left, pair: self._product(left, *pair), others, start)
        signs = [(1.0 if isinstance(op, ast.Add) else -1.0, self.read(right)) for op, right in others]
        return weighted_sum([(1.0, start), *signs])

    def _product(self, left: Expression, op: ast.operator, node: ast.expr) -> Expression:
        right = self.read(node)
        if isinstance(op, ast.Mult):
            if isinstance(left, WeightedSum) and not left.terms:
                return weighted_sum([(left.constant, right)])
            return weighted_sum([(self._constant(right, node, "One side of * must be a number"), left)])
        divisor = self._constant(right, node, "What divides must be a number")
        if divisor == 0:
            raise ValueError("Division by zero.")
        return weighted_sum([(1.0 / divisor, left)])

    def _constant(self, expression: Expression, node: ast.expr, what: str) -> float:
        if isinstance(expression, WeightedSum) and not expression.terms:
            return expression.constant
        raise ExpressionError(f"{what}, got {expression}.", self._source.text, self._source.place(node.col_offset))

    def _call(self, node: ast.Call) -> Expression:
        name = self._source.words[node.func.id] if isinstance(node.func, ast.Name) else ""
        if name in EXTREMES and not node.keywords:
            return make_extreme(name, [self.read(operand) for operand in node.args])
        if name == "z" and len(node.args) == 1:
            settings = self._settings(node.keywords)
            if settings.keys() <= {"mean", "spread"}:
                numbers = {
                    key: self._constant(self.read(at), at, f"{key} must be a number") for key, at in settings.items()
                }
                return make_standardized(self.read(node.args[0]), self.cards, **numbers)
        raise ValueError("Functions are min(a, b, ...), max(a, b, ...), z(a) and z(a, mean=..., spread=...).")

    def _settings(self, keywords: list[ast.keyword]) -> dict[str, ast.expr]:
        settings: dict[str, ast.expr] = {}
        for keyword in keywords:
            name = self._source.words[str(keyword.arg)]
            if name in settings:  # Python's parser leaves this to its compiler, which never sees the tree
                place = self._source.place(keyword.col_offset)
                raise ExpressionError(f"{name} is given twice.", self._source.text, place)
            settings[name] = keyword.value
        return settings

    def _gate(self, node: ast.IfExp) -> Expression:
        test = node.test
        if not isinstance(test, ast.Compare) or len(test.ops) != 1 or type(test.ops[0]) not in _COMPARISONS:
            place = self._source.place(test.col_offset)
            message = "`if` takes one comparison with >, >=, < or <=, such as safety > 0."
            raise ExpressionError(message, self._source.text, place)
        condition = self.read(test.left), _COMPARISONS[type(test.ops[0])], self.read(test.comparators[0])
        missing = isinstance(node.orelse, ast.Constant) and node.orelse.value is ...
        passed, failed = self.read(node.body), None if missing else self.read(node.orelse)
        return make_gate(passed, condition, self.cards, failed=failed)
