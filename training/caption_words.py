"""The words that the rules for hard negatives know."""

from __future__ import annotations

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
"""Nouns that name the picture, a part of it, or too much to exclude anything."""

IRREGULAR_PLURALS: frozenset[str] = frozenset(["people", "men", "women", "children", "sheep", "fish", "mice", "geese"])
