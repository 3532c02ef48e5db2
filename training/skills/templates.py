"""Prompts of a skill by rules: a plain file of lists and sentences, filled in every way or in some drawn ways."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LIST = re.compile(r"(\w+)\s*=\s*(.+)")
_SLOT = re.compile(r"\{(a )?(\w+?)(?:\.(\w+))?\}")
_VOWELS = "aeiou"
_LISTED = 1_000_000  # orders of more than so many are drawn one by one


@dataclass(frozen=True)
class Templates:
    r"""Sentences with slots, and the words that fill them.

    A slot `{colour}` takes any word of the list `colour`. Slots `{colour.1}` and `{colour.2}` of one sentence take
    different words, and one that is repeated takes the same word again. `{a colour.1}` puts "a" or "an" before it,
    by its first letter.

    Attributes:
        lists: name -> words.
        sentences: with slots.

    Raises:
        ValueError: when a slot has no list, a list is too short for its slots or repeats a word, or nothing is there.

    Example:
        >>> templates = Templates.parse("colour = red | orange\na photo of {a colour.1} cat and {a colour.2} dog")
        >>> list(templates)
        ['a photo of a red cat and an orange dog', 'a photo of an orange cat and a red dog']
    """

    lists: Mapping[str, tuple[str, ...]]
    sentences: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.sentences:
            raise ValueError("There is no sentence: write at least one, such as `a photo of {number} {things}`.")
        for name, words in self.lists.items():
            if len(set(words)) < len(words):
                raise ValueError(f"The list {name} has a word twice: {' | '.join(words)}.")
        for sentence in self.sentences:
            self._check(sentence)

    @classmethod
    def parse(cls, text: str) -> Templates:
        """Read lines `name = word | word | ...` and sentences; empty lines and those that begin with # do not count.

        Raises:
            ValueError: as the class; it names the line of a list that is defined twice.
        """
        lists: dict[str, tuple[str, ...]] = {}
        sentences = []
        for number, line in enumerate(text.splitlines(), start=1):
            line = line.strip()
            found = _LIST.fullmatch(line)
            if not line or line.startswith("#"):
                continue
            if found is None:
                sentences.append(line)
            elif found[1] in lists:
                raise ValueError(f"Line {number}: the list {found[1]} is there already.")
            else:
                lists[found[1]] = tuple(filter(None, (word.strip() for word in found[2].split("|"))))
        return cls(lists, tuple(sentences))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Templates:
        """Read a file of templates, in UTF-8.

        Raises:
            OSError: when it cannot be read.
            ValueError: as `parse`; it names the file.
        """
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # of wrong bytes, too
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    @property
    def num_prompts(self) -> int:
        """Number of ways to fill the sentences."""
        return sum(_number_of_ways(self._slots(sentence)) for sentence in self.sentences)

    def __iter__(self) -> Iterator[str]:
        """Every prompt, in order."""
        return (self.prompt(index) for index in range(self.num_prompts))

    def prompt(self, index: int) -> str:
        """The prompt of a number, in [0, num_prompts)."""
        for sentence in self.sentences:
            slots = self._slots(sentence)
            ways = _number_of_ways(slots)
            if 0 <= index < ways:
                chosen = _chosen(slots, index)
                return _SLOT.sub(lambda slot: _with_article(slot, chosen), sentence)  # noqa: B023 (called at once)
            index -= ways
        raise IndexError("no such prompt")

    def draw(self, seed: int = 0) -> Iterator[str]:
        """Every prompt once, in a random order; the first ones come at once, however many there are."""
        rng, number = random.Random(seed), self.num_prompts  # noqa: S311 (no secret)
        if number <= _LISTED:
            yield from map(self.prompt, rng.sample(range(number), number))
            return
        seen: set[int] = set()
        while len(seen) < number:
            index = rng.randrange(number)
            if index not in seen:
                seen.add(index)
                yield self.prompt(index)

    def _slots(self, sentence: str) -> dict[str, dict[str, tuple[str, ...]]]:
        """List -> index of its slots in the sentence -> words that they may take."""
        slots: dict[str, dict[str, tuple[str, ...]]] = {}
        for _, name, index in _SLOT.findall(sentence):
            slots.setdefault(name, {})[index] = self.lists[name]
        return slots

    def _check(self, sentence: str) -> None:
        for _, name, _ in _SLOT.findall(sentence):
            if name not in self.lists:
                known = ", ".join(self.lists) or "none"
                raise ValueError(f"{sentence!r} has a slot {name!r} without a list; there are: {known}.")
        for name, indices in self._slots(sentence).items():
            if len(indices) > len(self.lists[name]):
                raise ValueError(f"{sentence!r} needs {len(indices)} different words of {name}: its list has fewer.")
        rest = _SLOT.sub("", sentence)
        if "{" in rest or "}" in rest:
            raise ValueError(f"{sentence!r} has a brace that is no slot: write {{name}}, {{name.1}} or {{a name}}.")


def _number_of_ways(slots: Mapping[str, Mapping[str, Sequence[str]]]) -> int:
    ways = 1
    for indices in slots.values():
        for place, words in enumerate(indices.values()):
            ways *= len(words) - place  # slots of one list take different words
    return ways


def _chosen(slots: Mapping[str, Mapping[str, Sequence[str]]], way: int) -> dict[tuple[str, str], str]:
    """(list, index) -> word, for one of the ways: the digits of its number in a mixed base."""
    chosen = {}
    for name, indices in slots.items():
        left = list(next(iter(indices.values())))
        for index in indices:
            way, digit = divmod(way, len(left))
            chosen[name, index] = left.pop(digit)
    return chosen


def _with_article(slot: re.Match[str], chosen: Mapping[tuple[str, str], str]) -> str:
    word = chosen[slot[2], slot[3] or ""]
    if slot[1] is None:
        return word
    return f"{'an' if word[0].lower() in _VOWELS else 'a'} {word}"
