"""The error of an expression that cannot be read: it shows the place."""

from __future__ import annotations

_SHOWN = 240
"""Letters of a long text that are shown, the mistake in their middle."""


class ExpressionError(ValueError):
    """A composition's text is not understood, or means something that cannot be computed.

    Attributes:
        text: the expression.
        position: 0-based place of the mistake in it.

    Example:
        >>> raise ExpressionError("Expected a number.", "2 * ?", 4)
        Traceback (most recent call last):
        fk_reward.rewards.composition.errors.ExpressionError: Expected a number.
          2 * ?
              ^
    """

    def __init__(self, message: str, text: str, position: int) -> None:
        start = max(0, position - _SHOWN // 2)
        line = "".join(" " if letter.isspace() else letter for letter in text[start : start + _SHOWN])
        before, after = "... " if start else "", " ..." if start + _SHOWN < len(text) else ""
        super().__init__(f"{message}\n  {before}{line}{after}\n  {' ' * (len(before) + position - start)}^")
        self.text, self.position = text, position
