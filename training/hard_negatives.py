"""Hard negatives: a caption with one thing changed, so that it no longer fits its image."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fk_reward.durable_files import write_whole
from fk_reward.training.captions import (
    ATTRIBUTES,
    GROUPS,
    NOT_OBJECTS,
    NUMBERS,
    OPPOSITES,
    VALUES,
    Phrase,
    Word,
    meaning,
    phrases,
    relations,
)
from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import PromptedImage, check_items, digest_images, report_problems
from fk_reward.training.rows import RowSource, first_of, image_folder, parse_rows, read_rows, short

KINDS = ("attribute", "object", "count", "position")
"""What a rule may change: a colour, size or material; a thing; a number; a relation in space."""

Vocabulary = Mapping[str, Sequence[str]]
"""Family of words -> words of it that occur in the captions."""


@dataclass(frozen=True)
class HardNegative:
    """A caption and an altered version of it that no longer fits its image.

    Attributes:
        caption: the caption.
        altered: the caption with one change.
        kind: one of `KINDS`.
        change: the change in words: "red -> blue" (replaced), "red <-> blue" (exchanged).
    """

    caption: str
    altered: str
    kind: str
    change: str


@dataclass(frozen=True)
class _Mention:
    """A word that may be replaced by others of its `family`, or exchanged with them; words of one `group` are equal."""

    word: Word
    kind: str
    family: str
    group: str


def hard_negatives(caption: str, *, others: Iterable[str] = (), kinds: Sequence[str] = KINDS) -> list[HardNegative]:
    """All captions that differ from a caption in one respect and cannot mean the same.

    By rules, in English: an attribute, a thing or a number is replaced by another one that the caption does not
    mention, or exchanged with one that it does mention; a relation is replaced by its opposite. Replacements come from
    the other captions, so that unusual words do not give them away; only where these offer no attribute or number, it
    comes from the lists in `captions.py`. Changes that keep the meaning ("a dog and a cat" for "a cat and a dog", "a
    circle right of a circle" for "left of") are left out. The rules know which attributes exclude each other, but no
    synonyms of things.

    Args:
        caption: a description of an image.
        others: captions that replacements may be taken from.
        kinds: which of `KINDS` may be changed.

    Returns:
        Every change, one for each meaning; empty where no rule applies.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> for negative in hard_negatives("a red circle and a blue square", kinds=["attribute"])[-1:]:
        ...     print(negative.altered, "|", negative.change)
        a blue circle and a red square | red <-> blue
        >>> hard_negatives("a cat left of a dog", kinds=["position"])[0].altered
        'a cat right of a dog'
    """
    return _negatives(caption, _vocabulary(others), kinds)


def choose_hard_negatives(
    captions: Sequence[str], *, per_caption: int = 1, kinds: Sequence[str] = KINDS, seed: int = 0
) -> list[list[HardNegative]]:
    """Choose some hard negatives of each caption, the kinds in turn, replacements from all captions.

    Args:
        captions: the captions.
        per_caption: how many of each at most.
        kinds: which of `KINDS` may be changed.
        seed: of the choice, which depends on the caption too but not on its place in the list.

    Returns:
        For each caption its negatives; empty where no rule applies.

    Raises:
        ValueError: for an unknown kind or `per_caption` below 1.

    Example:
        >>> chosen = choose_hard_negatives(["a photo of two cats", "three dogs", "a day"], per_caption=2)
        >>> [[negative.change for negative in negatives] for negatives in chosen]
        [['cats -> dogs', 'two -> three'], ['dogs -> cats', 'three -> two'], []]
    """
    if per_caption < 1:
        raise ValueError(f"per_caption must be at least 1, got {per_caption}.")
    vocabulary = _vocabulary(captions)
    return [_choose(_negatives(caption, vocabulary, kinds), per_caption, seed) for caption in captions]


def _choose(negatives: list[HardNegative], num: int, seed: int) -> list[HardNegative]:
    """Some of the negatives: in random order, but first one of each kind, then another of each."""
    if not negatives:
        return []
    # Seeded by the caption too, so that its place in the list does not matter.
    digest = hashlib.sha256(negatives[0].caption.encode()).digest()
    rng = np.random.default_rng([seed, *digest])
    shuffled = [negatives[place] for place in rng.permutation(len(negatives))]
    rounds = [sum(other.kind == item.kind for other in shuffled[:place]) for place, item in enumerate(shuffled)]
    return [shuffled[place] for place in np.argsort(rounds, kind="stable")[:num]]


def _negatives(caption: str, vocabulary: Vocabulary, kinds: Sequence[str]) -> list[HardNegative]:
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {unknown}.")
    mentions = [mention for mention in _mentions(caption) if mention.kind in kinds]
    edits = [*_replacements(mentions, vocabulary), *_exchanges(mentions)]
    found: dict[object, HardNegative] = {}
    for kind, change, new_texts in edits:
        altered = _apply(caption, new_texts)
        if (key := meaning(altered)) != meaning(caption):
            found.setdefault(key, HardNegative(caption, altered, kind, change))
    return list(found.values())


def _mentions(caption: str) -> Iterator[_Mention]:
    for phrase in phrases(caption):
        for word in phrase.attributes:
            yield _Mention(word, "attribute", *GROUPS[word.lower])
        if phrase.number is not None:
            yield _Mention(phrase.head, "count", _count_family(phrase.head), str(phrase.number))
        if _is_object(phrase):
            family = "things" if phrase.is_plural else "thing"
            yield _Mention(phrase.rest[0], "object", family, phrase.rest[0].lower)
    for relation in relations(caption):
        yield _Mention(relation, "position", "relation", relation.lower)


def _count_family(word: Word) -> str:
    return "digits" if word.text.isdigit() else "numbers"


def _is_object(phrase: Phrase) -> bool:
    """Whether the noun is a single word that names a thing in the image."""
    noun = phrase.rest[0].lower
    return len(phrase.rest) == 1 and noun.isalpha() and len(noun) > 1 and noun not in NOT_OBJECTS | GROUPS.keys()


def _vocabulary(captions: Iterable[str]) -> Vocabulary:
    found: dict[str, set[str]] = {}
    for mention in (mention for caption in captions for mention in _mentions(caption)):
        found.setdefault(mention.family, set()).add(mention.word.lower)
    return {family: sorted(words) for family, words in found.items()}


def _candidates(family: str, vocabulary: Vocabulary, used: set[str]) -> list[str]:
    """Words that may replace one of a family: from the captions, else from the lists."""
    seen = [word for word in vocabulary.get(family, ()) if _group(word) not in used]
    known = {name: tuple(group[0] for group in groups) for name, groups in ATTRIBUTES.items()}
    known |= {"numbers": NUMBERS, "digits": tuple(map(str, range(2, 11)))}
    return seen or [word for word in known.get(family, ()) if _group(word) not in used]


def _group(word: str) -> str:
    return GROUPS[word][1] if word in GROUPS else str(VALUES.get(word, word))


_Edit = tuple[str, str, dict[Word, str]]


def _replacements(mentions: Sequence[_Mention], vocabulary: Vocabulary) -> Iterator[_Edit]:
    opposites = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    used = {mention.group for mention in mentions}
    for mention in mentions:
        position = mention.kind == "position"
        words = [opposites[mention.group]] if position else _candidates(mention.family, vocabulary, used)
        for word in words:
            yield mention.kind, f"{mention.word.lower} -> {word}", {mention.word: word}


def _exchanges(mentions: Sequence[_Mention]) -> Iterator[_Edit]:
    for first, second in combinations(mentions, 2):
        if first.family == second.family and first.group != second.group and first.kind != "position":
            change = f"{first.word.lower} <-> {second.word.lower}"
            yield first.kind, change, {first.word: second.word.lower, second.word: first.word.lower}


def _apply(caption: str, new_texts: Mapping[Word, str]) -> str:
    """Insert the new words; case and a preceding "a" or "an" follow."""
    # From the right, so that the places of the words before stay valid.
    for word in sorted(new_texts, key=lambda word: word.start, reverse=True):
        new = new_texts[word].capitalize() if word.text[0].isupper() else new_texts[word]
        before = re.sub(r"\b([Aa])n?(\s+)$", r"\1n\2" if _takes_an(new) else r"\1\2", caption[: word.start])
        caption = before + new + caption[word.end :]
    return caption


def _takes_an(word: str) -> bool:
    # By letter, save the common words that begin with the sound of "you" or "won".
    return word[0].lower() in "aeiou" and not word.lower().startswith(("uni", "use", "one", "eu"))


_IMAGE_KEYS = ("path", "image_path", "chosen_path")


def read_captions(
    source: RowSource, *, image_root: str | Path | None = None, skip_bad_rows: bool = False
) -> list[tuple[str, Path]]:
    """Read captions and the files of their images, and check the images.

    Args:
        source: what `read_rows` takes; rows with `prompt` (of two the first, which is the chosen image's) and `path`,
            `image_path` or `chosen_path`.
        image_root: folder that relative paths are relative to; None for the folder of the file.
        skip_bad_rows: leave out bad rows with a warning instead of raising.

    Returns:
        Caption and path of each image, without duplicates.

    Raises:
        FileNotFoundError: when there is no such file.
        PreferenceDataError: a ValueError, for bad rows.
    """
    rows, root = read_rows(source), image_folder(source, image_root)
    captioned, problems = parse_rows(rows, lambda row, origin: _captioned(row, root, origin))
    good, bad = check_items(captioned, digest_images(captioned))
    report_problems([*problems, *bad], len(rows), skip_bad_rows=skip_bad_rows)
    return list(dict.fromkeys((item.prompt, Path(str(item.image.content))) for item in good))


def _captioned(row: Mapping[str, Any], root: Path, origin: str) -> PromptedImage:
    prompt, path = first_of(row, "prompt", "text"), first_of(row, *_IMAGE_KEYS)
    if isinstance(prompt, (list, tuple)) and prompt:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"expected a caption as prompt, got {short(prompt)}")
    image = ImageSource.of(path, root=root)
    if not isinstance(image.content, Path):  # the file of pairs can only name images by path
        raise TypeError(
            f"expected the path of an image, got {'base64' if isinstance(path, str) else type(path).__name__}"
        )
    return PromptedImage(prompt=prompt, image=image, origin=origin)


def write_prompt_pairs(out: Path, images: Sequence[Path], negatives: Sequence[Sequence[HardNegative]]) -> None:
    """Write prompt pairs in the public preference format, with paths relative to the file's folder.

    Args:
        out: a JSON file, or one of JSON lines if its name ends in .jsonl.
        images: one for each list of negatives.
        negatives: what `choose_hard_negatives` made of the captions.
    """
    rows = [
        _row(Path(os.path.relpath(image, out.parent)).as_posix(), negative)
        for image, of_image in zip(images, negatives, strict=True)
        for negative in of_image
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = lines if out.suffix == ".jsonl" else json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    write_whole(out, text)


def _row(image: str, negative: HardNegative) -> dict[str, Any]:
    prompts = [negative.caption, negative.altered]
    about = {"kind": negative.kind, "change": negative.change}
    return {"prompt": prompts, "chosen_path": image, "reject_path": image} | about
