"""Captions that say the same have one meaning; noun phrases and relations are found with their parts."""

from __future__ import annotations

import pytest

from fk_reward.training.captions import meaning, phrases, relations


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a cat and a dog", "a dog and a cat", True),
        ("a cat, a dog and a bird", "a bird, a cat and a dog", True),
        ("a cat left of a dog", "a dog to the right of a cat", True),
        ("a cat left of a dog", "a dog left of a cat", False),
        ("a big cat", "a large cat", True),
        ("two cats", "2 cats", True),
        ("a red cat and a dog", "a cat and a red dog", False),
        ("a photo of an orange", "a photo of an apple", False),
    ],
)  # fmt: skip
def test_meaning(first, second, same):
    assert (meaning(first) == meaning(second)) is same


def test_the_parts_of_a_phrase():
    first, second = phrases("A photo of two big red circles in front of the wooden table.")[1:]
    assert (first.head.text, first.number, first.is_plural) == ("two", 2, True)
    assert [word.text for word in first.attributes] == ["big", "red"]
    assert [word.text for word in first.rest] == ["circles"]
    assert (second.number, second.is_plural, second.meaning[-1]) == (None, False, "table")


def test_relations_are_found_with_their_places():
    caption = "A cat Above a dog, and a bird on top of it"
    found = relations(caption)
    assert [relation.lower for relation in found] == ["above", "on top of"]
    assert [caption[relation.start : relation.end] for relation in found] == ["Above", "on top of"]
