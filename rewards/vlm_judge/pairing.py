"""Comparisons within a group, and the share that each member wins."""

from __future__ import annotations

from collections.abc import Sequence


def ring_pairs(num_members: int, num_rounds: int | None = None) -> list[tuple[int, int]]:
    """Pair each member of a ring with the next `num_rounds` ones, so that all meet equally many others.

    All K(K-1)/2 pairs need floor(K/2) rounds; m rounds cost K*m pairs. Each member stands first in as many of its pairs
    as second, up to one.

    Args:
        num_members: size K of the group.
        num_rounds: at least 1; None, or more than there are, for all pairs.

    Raises:
        ValueError: when `num_rounds` is less than 1.

    Example:
        >>> ring_pairs(4)
        [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)]
        >>> ring_pairs(4, num_rounds=1)
        [(0, 1), (1, 2), (2, 3), (3, 0)]
        >>> ring_pairs(2), ring_pairs(1)
        ([(0, 1)], [])
    """
    if num_rounds is not None and num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, or None, got {num_rounds}.")
    most = num_members // 2
    rounds = range(1, (most if num_rounds is None else min(num_rounds, most)) + 1)
    return [
        (i, (i + step) % num_members)
        for step in rounds
        for i in range(step if 2 * step == num_members else num_members)
    ]


def win_rates(pairs: Sequence[tuple[int, int]], outcomes: Sequence[float], *, num_members: int) -> list[float]:
    """Share of its comparisons that each member wins; 0.5 for a member that was not compared.

    Args:
        pairs: who was compared with whom.
        outcomes: for each pair how much the first won, in [0, 1].
        num_members: size of the group.

    Raises:
        ValueError: when the counts differ.

    Example:
        >>> win_rates([(0, 1), (1, 2), (2, 0)], [1.0, 0.5, 0.0], num_members=4)
        [1.0, 0.25, 0.25, 0.5]
    """
    won: list[list[float]] = [[] for _ in range(num_members)]
    for (first, second), outcome in zip(pairs, outcomes, strict=True):
        won[first].append(outcome)
        won[second].append(1 - outcome)
    return [sum(shares) / len(shares) if shares else 0.5 for shares in won]
