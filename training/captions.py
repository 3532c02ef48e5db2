"""English captions: noun phrases and relations, found by rules; everything else stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

ATTRIBUTES: dict[str, tuple[tuple[str, ...], ...]] = {
    "color": (
        ("red",),
        ("orange",),
        ("yellow",),
        ("green",),
        ("blue",),
        ("purple",),
        ("pink",),
        ("brown",),
        ("black",),
        ("white",),
        ("gray", "grey"),
    ),
    "size": (("small", "tiny", "little"), ("big", "large", "huge", "giant")),
    "material": (("wooden",), ("metal", "metallic"), ("plastic",), ("glass",), ("stone",), ("leather",)),
}
"""Family -> groups of words of one meaning: only words of different groups exclude each other."""

NUMBERS: tuple[str, ...] = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""Words for 2 to 10."""

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("left of", "right of"),
    ("above", "below"),
    ("over", "under"),
    ("in front of", "behind"),
    ("inside", "outside"),
    ("on top of", "underneath"),
)
"""Relations of two things, each with its opposite: "X left of Y" says what "Y right of X" says."""

ARTICLES: tuple[str, ...] = ("a", "an", "one", "the")

BOUNDARIES: frozenset[str] = frozenset(
    "and or but with without of in on at by to from near next beside against between among around across through into "
    "onto for as is are was were has have that which who while where when".split()
)
"""Words that end a noun phrase."""

NOT_OBJECTS: frozenset[str] = frozenset(
    "photo photos picture pictures image images painting drawing rendering render illustration sketch portrait "
    "photograph close-up background foreground style scene view side middle center top bottom front back "
    "person people animal animals object objects thing things shape shapes kind lot group pair".split()
)
"""Nouns that name the image, a part of it, or too much to exclude anything."""

IRREGULAR_PLURALS: frozenset[str] = frozenset(["people", "men", "women", "children", "sheep", "fish", "mice", "geese"])


_TOKEN = re.compile(r"[A-Za-z0-9][\w'-]*|[^\w\s]")
_RELATION = re.compile(rf"\b(?:{'|'.join(relation for pair in OPPOSITES for relation in pair)})\b", re.IGNORECASE)
_LEAD_IN = re.compile(r"\b(?:(?:is|are) )?(?:(?:to|on) the )?$", re.IGNORECASE)
_CONJUNCTION = re.compile(r"\s*(?:,\s*)?(?:\band\b)?\s*(?:,\s*)?", re.IGNORECASE)

GROUPS: dict[str, tuple[str, str]] = {
    word: (family, group[0]) for family, groups in ATTRIBUTES.items() for group in groups for word in group
}
"""Attribute -> its family and the first word of its group."""

VALUES: dict[str, int] = {word: value for value, word in enumerate(NUMBERS, start=2)} | {
    str(value): value for value in range(2, 11)
}
"""Number in words or digits -> value."""


@dataclass(frozen=True)
class Word:
    """A word and its place in the caption."""

    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        """The word in lower case."""
        return self.text.lower()


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: "two big red circles".

    Attributes:
        head: its article or number.
        attributes: words of `ATTRIBUTES` that follow.
        rest: the remaining words up to the next boundary; the last one is the noun where it is the only one.
    """

    head: Word
    attributes: tuple[Word, ...]
    rest: tuple[Word, ...]

    @property
    def is_plural(self) -> bool:
        """Whether the last word looks like a plural, and no article says otherwise."""
        if self.head.lower in ("a", "an", "one"):
            return False
        last = self.rest[-1].lower
        return last in IRREGULAR_PLURALS or (last.endswith("s") and not last.endswith("ss") and len(last) > 2)

    @property
    def number(self) -> int | None:
        """The number of things, where it is said and at least 2."""
        return VALUES.get(self.head.lower) if self.is_plural else None

    @property
    def meaning(self) -> tuple[str, ...]:
        """What it says, without the choice between words of one meaning."""
        number = str(VALUES.get(self.head.lower, "1"))
        return number, *sorted(GROUPS[word.lower][1] for word in self.attributes), *(word.lower for word in self.rest)


Part: TypeAlias = "Phrase | Word"


def relations(caption: str) -> list[Word]:
    """The relations of `OPPOSITES` in a caption, in order.

    Example:
        >>> [relation.text for relation in relations("a cat to the left of a dog")]
        ['left of']
    """
    return [Word(match[0], match.start(), match.end()) for match in _RELATION.finditer(caption)]


def phrases(caption: str) -> list[Phrase]:
    """The noun phrases that begin with an article or a number, in order.

    Example:
        >>> [phrase.meaning for phrase in phrases("a photo of two red circles and a star")]
        [('1', 'photo'), ('2', 'red', 'circles'), ('1', 'star')]
    """
    # A relation is not part of a phrase, though "right" or "top" could be: "a cat to the right of a dog".
    taken = [(_lead_in(caption, relation), relation.end) for relation in relations(caption)]
    words = [Word(match[0], match.start(), match.end()) for match in _TOKEN.finditer(caption)]
    ends = [_ends_phrase(word) or any(start <= word.start < end for start, end in taken) for word in words]
    found, position = [], 0
    while position < len(words):
        stop = next((i for i in range(position + 1, len(words)) if ends[i]), len(words))
        if not ends[position] and (phrase := _phrase(words[position:stop])) is not None:
            found.append(phrase)
            position = stop
        else:
            position += 1
    return found


def _ends_phrase(word: Word) -> bool:
    return word.lower in BOUNDARIES or not word.text[0].isalnum()


def _phrase(words: list[Word]) -> Phrase | None:
    head, *others = words
    if head.lower not in ARTICLES and head.lower not in VALUES:
        return None
    num_attributes = next((i for i, word in enumerate(others) if word.lower not in GROUPS), len(others))
    num_attributes = min(num_attributes, len(others) - 1)  # the last word is the noun: "an orange"
    if num_attributes < 0:
        return None
    return Phrase(head, tuple(others[:num_attributes]), tuple(others[num_attributes:]))


def _lead_in(caption: str, relation: Word) -> int:
    match = _LEAD_IN.search(caption[: relation.start])
    return match.start() if match else relation.start


def meaning(caption: str) -> tuple[object, ...]:
    """A form that is equal for captions which say the same in another order.

    Phrases joined by "and" or commas are sorted, and the second of two opposite relations is replaced by the first,
    with its sides exchanged. Everything else is kept as text.

    Example:
        >>> meaning("a cat and a dog") == meaning("a dog and a cat")
        True
        >>> meaning("a cat above a dog") == meaning("a dog below a cat"), meaning("a cat") == meaning("a dog")
        (True, False)
    """
    parts = list(_joined(list(_parts(caption))))
    for place in range(1, len(parts) - 1):
        before, relation, after = parts[place - 1 : place + 2]
        if isinstance(relation, Word) and isinstance(before, list) and isinstance(after, list):
            for first, second in OPPOSITES:
                if relation.lower == second:
                    parts[place - 1 : place + 2] = [after, Word(first, relation.start, relation.end), before]
    return tuple(tuple(part) if isinstance(part, list) else part.lower for part in parts)


def _parts(caption: str) -> Iterator[Part]:
    """Phrases, relations, and the text between them as words."""
    marks: list[tuple[int, int, Part]] = [(p.head.start, p.rest[-1].end, p) for p in phrases(caption)]
    marks += [(_lead_in(caption, relation), relation.end, relation) for relation in relations(caption)]
    position = 0
    for start, end, mark in sorted(marks, key=lambda mark: mark[0]):
        if caption[position:start].strip():
            yield Word(caption[position:start].strip(), position, start)
        yield mark
        position = end
    if caption[position:].strip():
        yield Word(caption[position:].strip(), position, len(caption))


def _joined(parts: list[Part]) -> Iterator[list[tuple[str, ...]] | Word]:
    """Runs of phrases that are joined by conjunctions, as sorted lists of meanings."""
    run: list[tuple[str, ...]] = []
    for place, part in enumerate(parts):
        if isinstance(part, Phrase):
            run.append(part.meaning)
            continue
        if run and _CONJUNCTION.fullmatch(part.text) and isinstance(parts[min(place + 1, len(parts) - 1)], Phrase):
            continue
        if run:
            yield sorted(run)
            run = []
        yield part
    if run:
        yield sorted(run)
