"""The error of an expression that cannot be read: it shows the place."""

from __future__ import annotations


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
        line = "".join(" " if letter.isspace() else letter for letter in text)
        super().__init__(f"{message}\n  {line}\n  {' ' * position}^")
        self.text, self.position = text, position
