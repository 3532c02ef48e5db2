"""What a probe finds: pass, fail with a remedy, or not applicable with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Outcome(str, Enum):
    """How a probe ended."""

    PASS = "pass"  # noqa: S105 (no password)
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        outcome: pass, fail or not applicable.
        observed: what was measured, or why nothing was, in a sentence.
        remedy: what to do about it; empty unless it failed.

    Raises:
        ValueError: when there is no observation, or a failure without a remedy.

    Example:
        >>> failed("black, white and noise all score 0.5.", remedy="Load the head.").outcome.value
        'fail'
    """

    outcome: Outcome
    observed: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if not self.observed.strip():
            raise ValueError("A finding says what was observed.")
        if (self.outcome is Outcome.FAIL) != bool(self.remedy.strip()):
            raise ValueError("A finding has a remedy where it failed, and only there.")


def passed(observed: str) -> Finding:
    """The reward is as it should be."""
    return Finding(Outcome.PASS, observed)


def failed(observed: str, *, remedy: str) -> Finding:
    """The reward is not as it should be."""
    return Finding(Outcome.FAIL, observed, remedy)


def not_applicable(reason: str) -> Finding:
    """The question does not arise for this reward."""
    return Finding(Outcome.NOT_APPLICABLE, reason)
