"""Prompts that say nearly the same, by ROUGE-L (Lin 2004), as SELMA filters them (Li et al. 2024, section 3.1)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from fk_reward.value_checks import real_number

MAX_SIMILARITY = 0.8
"""Largest ROUGE-L with a prompt that is kept already; SELMA's."""

_WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words of letters a-z and digits, as ROUGE counts them; other letters end a word.

    Example:
        >>> words_of("A red cat, 2 dogs.")
        ('a', 'red', 'cat', '2', 'dogs')
    """
    return tuple(_WORD.findall(text.lower()))


def rouge_l(one: str, other: str) -> float:
    """ROUGE-L, its F-measure with beta 1: 2 LCS / (m + n) of the longest common subsequence of words, in [0, 1].

    Example:
        >>> rouge_l("a photo of two cats", "a photo of three cats")
        0.8
    """
    return _similarity(words_of(one), words_of(other))


class DistinctPrompts:
    """Prompts of which no two are alike: one that comes too near to an earlier one is dropped.

    Args:
        max_similarity: largest ROUGE-L with an earlier prompt, in [0, 1]; with 1 only equal words are dropped.

    Attributes:
        prompts: those that were kept, in order.
        num_dropped: how many were not.

    Raises:
        ValueError: when `max_similarity` is out of range.

    Example:
        >>> distinct = DistinctPrompts(0.7)
        >>> [distinct.add(text) for text in ("a photo of two cats", "a photo of three cats", "snow at night")]
        [True, False, True]
        >>> distinct.prompts
        ['a photo of two cats', 'snow at night']
    """

    def __init__(self, max_similarity: float = MAX_SIMILARITY) -> None:
        self.max_similarity = real_number("max_similarity", max_similarity, low=0.0, high=1.0)
        self.prompts: list[str] = []
        self.num_dropped = 0
        self._words: list[tuple[str, ...]] = []
        self._counts: list[Counter[str]] = []
        self._seen: set[tuple[str, ...]] = set()

    def add(self, prompt: str) -> bool:
        """Keep a prompt, unless it says nearly what an earlier one says; whether it was kept.

        Raises:
            ValueError: for a prompt without a word of letters a-z or digits, which cannot be compared.
        """
        words = words_of(prompt)
        if not words:
            raise ValueError(f"The prompt {prompt!r} has no word of letters a-z or digits, so it cannot be compared.")
        if words in self._seen or (self.max_similarity < 1 and self._is_near(words)):
            self.num_dropped += 1
            return False
        self._seen.add(words)
        self.prompts.append(prompt)
        self._words.append(words)
        self._counts.append(Counter(words))
        return True

    def extend(self, prompts: Iterable[str]) -> None:
        """Keep those of several prompts that are not alike."""
        for prompt in prompts:
            self.add(prompt)

    def _is_near(self, words: tuple[str, ...]) -> bool:
        counts = Counter(words)
        for other, known in zip(self._words, self._counts, strict=True):
            # Common words in any order bound the subsequence from above, and are much faster to count.
            bound = 2 * (counts & known).total() / (len(words) + len(other))
            if bound > self.max_similarity and _similarity(words, other) > self.max_similarity:
                return True
        return False


def _similarity(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    total = len(one) + len(other)
    return 2 * _common_length(one, other) / total if total else 1.0


def _common_length(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Length of the longest common subsequence, all rows of its table at once in the bits of an integer.

    Hyyro 2004, "Bit-parallel LCS-length computation revisited": a bit that has become 0 is a step of the subsequence.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(one) - row.bit_count()
