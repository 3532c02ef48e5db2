"""GenEval 2: its file of prompts and atoms, read as it is, and its questions about the records of the first GenEval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.questions.atoms import (
    COUNTS,
    NUMBERS,
    Atom,
    field_of,
    json_lines,
    question_record,
)

SOURCE = "https://github.com/facebookresearch/GenEval2"
"""Where the file is: 800 prompts, CC BY-NC 4.0. It is not part of this package."""

FILE = "geneval2_data.jsonl"


def read_geneval2(path: Path) -> tuple[dict[str, Any], ...]:
    """Read `geneval2_data.jsonl`, a JSON object a line.

    Fields, as the repository's README has them: `prompt`; `atom_count`, the atoms of the prompt, of which "a" and "and"
    are none; `vqa_list`, pairs of a question and its answer, which count "a" as well; `skills`, one for each pair.

    Args:
        path: the user's copy, or a file of one's own in its format.

    Raises:
        OSError: it cannot be read.
        ValueError: a line in another format, or an answer that the official script would not look for: it takes counts
            from one to ten and "Yes".

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> line = '{"prompt": "2 cows", "atom_count": 2, "skills": ["count"], "vqa_list": [["How many cows?", "two"]]}'
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "data.jsonl"
        ...     _ = path.write_text(line)
        ...     read_geneval2(path)[0]["groups"]
        ['2 atoms']
    """
    records = [_geneval2_record(fields, place) for place, fields in json_lines(path)]
    repeated = [prompt for prompt, count in Counter(record["prompt"] for record in records).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} has the prompt {repeated[0]!r} twice; the official script finds images by it.")
    return tuple(records)


def _geneval2_record(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    pairs, skills = (field_of(fields, name, where=place) for name in ("vqa_list", "skills"))
    count = field_of(fields, "atom_count", where=place)
    if type(count) is not int or count < 1:
        raise ValueError(f"{place}: atom_count should be a whole number of at least 1, got {count!r}.")
    if not isinstance(pairs, list) or not isinstance(skills, list) or len(pairs) != len(skills):
        raise ValueError(f"{place}: vqa_list and skills should be lists of one length, got {pairs!r} and {skills!r}.")
    atoms = [_geneval2_atom(*item, place) for item in enumerate(zip(pairs, skills, strict=True), start=1)]
    groups = [atom_group(count)]
    try:
        return question_record(field_of(fields, "prompt", where=place), atoms, tag=groups[0], groups=groups)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _geneval2_atom(number: int, item: tuple[Any, Any], place: str) -> Atom:
    pair, skill = item
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in (*pair, skill)):
        raise ValueError(f"{place}: vqa_list should hold pairs of a question and its answer, got {pair!r} ({skill!r}).")
    question, answer = pair
    known = answer in NUMBERS if question.startswith(COUNTS) else answer == "Yes"
    if not known:
        raise ValueError(
            f"{place}: the answer to {question!r} is {answer!r}; GenEval 2 has numbers from one to ten, and Yes."
        )
    return Atom(question, answer, (skill,), number)


def atom_group(count: int) -> str:
    """Name of the prompts of so many atoms. "a" and "and" are none, although "a" is counted in the image.

    Example:
        >>> atom_group(1), atom_group(7)
        ('1 atom', '7 atoms')
    """
    return f"{count} atom" if count == 1 else f"{count} atoms"


_RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def with_questions(record: Mapping[str, Any]) -> dict[str, Any]:
    """GenEval 2's questions about what a record of the first GenEval asks for, and nothing more.

    So that two judges can be compared on the same images: where GenEval does not mind further objects, they are not
    counted here either.

    Args:
        record: of `evaluation_metadata.jsonl`.

    Example:
        >>> from fk_reward.benchmarks.geneval.prompts import position_record
        >>> for atom in with_questions(position_record("dog", "right of", "kite"))["atoms"]:
        ...     print(atom["question"], atom["answer"])
        Are there any kites in the image? Yes
        Are there any dogs in the image? Yes
        Is the dog to the right of the kite? Yes
    """
    atoms = clause_atoms(record["include"], exact="exclude" in record)
    return question_record(record["prompt"], atoms, tag=record["tag"])


def clause_atoms(clauses: Sequence[Mapping[str, Any]], *, exact: bool) -> list[Atom]:
    """Questions about clauses in GenEval's format.

    Args:
        clauses: with `class`, `count` and, where they matter, `color` and `position`.
        exact: whether the number of objects is asked for, too.
    """
    totals = Counter[str]()
    for clause in clauses:
        totals[clause["class"]] += clause["count"]
    found: list[tuple[str, str, str]] = []
    for clause in clauses:
        name = clause["class"]
        alone = sum(other["class"] == name for other in clauses) == 1
        if exact:
            found.append((f"{COUNTS} {plural(name)} are in the image?", _number(totals[name]), "count"))
        if "color" in clause:
            found.append((_color_question(name, clause["color"], clause["count"], alone=alone), "Yes", "attribute"))
        found.append((f"Are there any {plural(name)} in the image?", "Yes", "object"))
        if "position" in clause:
            relation, other = clause["position"]
            question = f"Is the {name} {_RELATIONS[relation]} the {clauses[other]['class']}?"
            found.append((question, "Yes", "position"))
    unique = dict.fromkeys(found)
    return [Atom(text, answer, (skill,), number) for number, (text, answer, skill) in enumerate(unique, start=1)]


def _color_question(name: str, color: str, count: int, *, alone: bool) -> str:
    if not alone:  # "the square" would be one of two
        return f"Is there a {color} {name} in the image?"
    return f"Is the {name} {color}?" if count == 1 else f"Are the {plural(name)} {color}?"


def _number(count: int) -> str:
    return next(word for word, digits in NUMBERS.items() if digits == str(count))


_PLURALS = {
    **{"person": "people", "knife": "knives", "sheep": "sheep", "computer mouse": "computer mice"},
    **{name: name for name in ("scissors", "skis")},
}


def plural(name: str) -> str:
    """The plural of a class of GenEval or a shape.

    Example:
        >>> plural("bench"), plural("cow"), plural("person")
        ('benches', 'cows', 'people')
    """
    return _PLURALS.get(name) or (f"{name}es" if name.endswith(("s", "ch", "sh")) else f"{name}s")
