"""The six kinds of records of a suite: what a picture must show, and the prompt that asks for it.

A record is what a line of GenEval's `evaluation_metadata.jsonl` holds: `tag` names the task, each clause of `include`
a class, how many of it must be there and perhaps their colour or place, each clause of `exclude` how many are too many.
"""

from __future__ import annotations

from typing import Any

NUMBERS: dict[int, str] = {2: "two", 3: "three", 4: "four"}


def with_article(words: str) -> str:
    """Put a or an before words, by their first letter.

    Example:
        >>> with_article("orange"), with_article("cow")
        ('an orange', 'a cow')
    """
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def single_object_record(name: str) -> dict[str, Any]:
    """Ask for one object.

    Example:
        >>> single_object_record("bench")["prompt"]
        'a photo of a bench'
    """
    return _record("single_object", [{"class": name, "count": 1}], with_article(name))


def two_object_record(first: str, second: str) -> dict[str, Any]:
    """Ask for two objects.

    Example:
        >>> two_object_record("bench", "apple")["prompt"]
        'a photo of a bench and an apple'
    """
    include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return _record("two_object", include, f"{with_article(first)} and {with_article(second)}")


def counting_record(name: str, count: int) -> dict[str, Any]:
    """Ask for exactly two, three or four objects of a kind.

    Example:
        >>> record = counting_record("bus", 3)
        >>> record["prompt"], record["include"], record["exclude"]
        ('a photo of three buses', [{'class': 'bus', 'count': 3}], [{'class': 'bus', 'count': 4}])
    """
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    phrase = f"{NUMBERS[count]} {plural}"
    return _record("counting", [{"class": name, "count": count}], phrase, exclude=[{"class": name, "count": count + 1}])


def color_record(name: str, color: str) -> dict[str, Any]:
    """Ask for an object of a colour.

    Example:
        >>> color_record("bench", "red")["include"]
        [{'class': 'bench', 'count': 1, 'color': 'red'}]
    """
    include = [{"class": name, "count": 1, "color": color}]
    return _record("colors", include, f"{with_article(color)} {name}")


def position_record(name: str, relation: str, other: str) -> dict[str, Any]:
    """Ask for an object in relation to another, which comes first in the list.

    Example:
        >>> position_record("dog", "right of", "kite")["include"]
        [{'class': 'kite', 'count': 1}, {'class': 'dog', 'count': 1, 'position': ['right of', 0]}]
    """
    include = [{"class": other, "count": 1}, {"class": name, "count": 1, "position": [relation, 0]}]
    return _record("position", include, f"{with_article(name)} {relation} {with_article(other)}")


def color_attribution_record(first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    """Ask for two objects, each of its colour.

    Args:
        first: colour and class of one.
        second: colour and class of the other.

    Example:
        >>> color_attribution_record(("red", "bench"), ("orange", "cow"))["prompt"]
        'a photo of a red bench and an orange cow'
    """
    include = [{"class": name, "count": 1, "color": color} for color, name in (first, second)]
    phrases = (f"{with_article(color)} {name}" for color, name in (first, second))
    return _record("color_attr", include, " and ".join(phrases))


def _record(
    tag: str, include: list[dict[str, Any]], phrase: str, *, exclude: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    clauses = {"include": include} | ({"exclude": exclude} if exclude else {})
    return {"tag": tag, **clauses, "prompt": f"a photo of {phrase}"}
