"""ROUGE-L against the textbook's table, and which prompts are dropped."""

from __future__ import annotations

import random

import pytest

from fk_reward.training.skills.near_duplicates import DistinctPrompts, rouge_l


def textbook(one, other):
    """F-measure of the longest common subsequence, by the table of dynamic programming."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(one) + len(other))


def test_it_is_that_of_the_textbook():
    rng = random.Random(0)  # noqa: S311 (no secret)
    for _ in range(300):
        one, other = ([rng.choice("abcd") for _ in range(rng.randint(1, 80))] for _ in range(2))
        assert rouge_l(" ".join(one), " ".join(other)) == textbook(one, other)


def test_order_counts():
    assert rouge_l("red cat blue dog", "blue dog red cat") == 0.5
    assert rouge_l("a b", "c d") == 0.0
    assert rouge_l("A Red, cat!", "a red cat") == 1.0


def test_what_is_kept_does_not_depend_on_the_shortcut():
    rng = random.Random(1)  # noqa: S311 (no secret)
    texts = [" ".join(rng.choice("abcde") for _ in range(rng.randint(3, 8))) for _ in range(150)]
    kept = []
    for text in texts:
        if all(textbook(text.split(), other.split()) <= 0.8 for other in kept):
            kept.append(text)
    distinct = DistinctPrompts(0.8)
    distinct.extend(texts)
    assert distinct.prompts == kept
    assert distinct.num_dropped == len(texts) - len(kept) > 0


def test_with_1_only_equal_words_are_dropped():
    distinct = DistinctPrompts(1.0)
    assert [distinct.add(text) for text in ("two cats", "Two cats.", "two cats two")] == [True, False, True]


def test_refusals():
    with pytest.raises(ValueError, match=r"max_similarity should be in \[0, 1\]"):
        DistinctPrompts(1.5)
    with pytest.raises(ValueError, match="no word"):
        DistinctPrompts().add("猫")
