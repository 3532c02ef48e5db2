"""The card of a reward: what a person should know before steering with it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RewardCard:
    """Facts about a reward that can be read without loading its weights.

    Attributes:
        name: the name that a person types.
        summary: one line that says what is measured.
        higher_is_better: samplers maximise the score. Where this is False, steer with its negative,
            `-reward`.
        typical_range: (low, high), in the unit of the score, within which scores of ordinary pictures lie. A
            description, not a bound that is enforced; infinite where unknown.
        spread: typical standard deviation of the score among pictures of one prompt, in the unit of the
            score; None where nobody has measured it. A `reward_scale` of 1 / spread is where steering begins
            to be felt.
        differentiable: whether the gradient of the score with respect to the images is usable.
        max_prompt_tokens: number of tokens that are read of a prompt, special tokens included; None for no
            limit.
        licence: licence of the weights (of the code, where there are no weights).
        source: paper or official file that defines the score.
        weights: hub repository, "in the package" or "none".
        memory: memory that the weights take, in words.

    Raises:
        TypeError: when a text or a flag has the wrong type.
        ValueError: when a text is empty, the range is not increasing, or a number is not positive.

    Example:
        >>> RewardCard(name="redness", summary="mean of the red channel", typical_range=(0, 1), spread=0.1).spread
        0.1
    """

    name: str
    summary: str
    higher_is_better: bool = True
    typical_range: tuple[float, float] = (-math.inf, math.inf)
    spread: float | None = None
    differentiable: bool = False
    max_prompt_tokens: int | None = None
    licence: str = "not stated"
    source: str = "not stated"
    weights: str = "none"
    memory: str = "none"

    def __post_init__(self) -> None:
        for field in ("name", "summary", "licence", "source", "weights", "memory"):
            _check_text(field, getattr(self, field))
        for field in ("higher_is_better", "differentiable"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"RewardCard.{field} must be True or False, got {getattr(self, field)!r}.")
        low, high = self.typical_range
        if not low < high:
            raise ValueError(f"RewardCard.typical_range must be (low, high) with low < high, got {self.typical_range}.")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ValueError(f"RewardCard.spread must be positive and finite, or None, got {self.spread}.")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"RewardCard.max_prompt_tokens must be at least 1, or None, got {self.max_prompt_tokens}.")


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"RewardCard.{field} must be a string, got {type(value).__name__}.")
    if not value.strip() or "\n" in value:
        raise ValueError(f"RewardCard.{field} must be one line of text, got {value!r}.")
