"""Questions about images: an atom of a prompt, how its answer may be spelt, and records of prompts with atoms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from fk_reward.documents import parse_json
from fk_reward.text import shortened, text_problem

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")

NUMBERS: dict[str, str] = {
    word: str(number)
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1)
}
"""Numbers as GenEval 2 spells them, and their digits."""

COUNTS = "How many"
"""How a question for a number begins."""


@dataclass(frozen=True)
class Atom:
    """One thing that a prompt asks for, as a question with the answer that a right image gets.

    Attributes:
        question: as the judge is asked it, but for what the benchmark adds to every question.
        answer: the right one: `"Yes"`, `"No"`, a number in words, or another word.
        skills: what it tests, from broad to narrow; the mean of each is reported.
        number: by which other atoms of its prompt name it; at least 1.
        parents: numbers of the atoms without which it makes no sense; 0 is none.

    Example:
        >>> Atom("Is the cow red?").to_dict()
        {'question': 'Is the cow red?', 'answer': 'Yes', 'skills': [], 'number': 1, 'parents': []}
    """

    question: str
    answer: str = "Yes"
    skills: tuple[str, ...] = ()
    number: int = 1
    parents: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, as it stands in a record."""
        return {**vars(self), "skills": list(self.skills), "parents": list(self.parents)}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Atom:
        """The atom in a record."""
        return cls(**{**fields, "skills": tuple(fields["skills"]), "parents": tuple(fields["parents"])})


def spellings(question: str, answer: str) -> tuple[str, ...]:
    """The ways to write an answer whose probabilities are summed, those of GenEval 2's `evaluation.py`.

    Args:
        question: one that begins with "How many" is answered by a number, in words or in digits.
        answer: the right one.

    Example:
        >>> spellings("How many cows are in the image?", "four")
        ('four', 'Four', ' four', ' Four', '4', ' 4')
        >>> spellings("Are the cows white?", "Yes")
        ('Yes', 'yes', ' Yes', ' yes')
    """
    if answer.lower() in ("yes", "no"):
        return YES if answer.lower() == "yes" else NO
    words = (answer, answer.capitalize())
    forms = (*words, *(f" {word}" for word in words))
    digits = NUMBERS.get(answer.lower()) if question.startswith(COUNTS) else None
    return forms if digits is None else (*forms, digits, f" {digits}")


def question_record(
    prompt: str, atoms: Iterable[Atom], *, tag: str, groups: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """The record of a prompt: what is stored beside its images, and all that a judge of questions needs.

    Args:
        prompt: the prompt.
        atoms: at least one.
        tag: the task that it counts for in the table of accuracies.
        groups: of prompts over which the judge's scores are averaged.
        **more: further fields, such as an id.

    Raises:
        ValueError: an empty prompt or question, no atom, or a parent that is no atom of the prompt.

    Example:
        >>> question_record("a cow", [Atom("a cow?", parents=(2,))], tag="color")
        Traceback (most recent call last):
        ValueError: 'a cow': question 1 depends on 2, but the questions are 1.
    """
    found = list(atoms)
    for text in (prompt, *(atom.question for atom in found), *(atom.answer for atom in found)):
        check_text(text, where=shortened(repr(prompt), 80))
    if not found:
        raise ValueError(f"{prompt!r}: there is no question about it.")
    numbers = [atom.number for atom in found]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{prompt!r}: two of its questions have one number, of {', '.join(map(str, numbers))}.")
    for atom in found:
        if unknown := [parent for parent in atom.parents if parent != 0 and parent not in numbers]:
            known = ", ".join(map(str, numbers))
            raise ValueError(
                f"{prompt!r}: question {atom.number} depends on {unknown[0]}, but the questions are {known}."
            )
    return {"tag": tag, "prompt": prompt, **more, "groups": list(groups), "atoms": [atom.to_dict() for atom in found]}


def check_text(text: object, *, where: str) -> str:
    """A text of a user's file.

    Raises:
        ValueError: it is no text, empty, or holds characters that no tokenizer takes.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: a text is missing, got {text!r}.")
    if (problem := text_problem(text)) is not None:
        raise ValueError(f"{where}: {problem}")
    return text


def json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, each with its place, "file:line"; empty lines are skipped.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is no object, or there is none.
    """
    found = []
    # Not `splitlines`, which also splits at characters that a JSON string may hold, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            content = parse_json(line, place)
            if not isinstance(content, dict):
                raise ValueError(f"{place}: expected a JSON object, got {shortened(line, 80)}.")
            found.append((place, content))
    if not found:
        raise ValueError(f"{path} is empty: expected one JSON object a line.")
    return found


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def find_file(path: Path, name: str) -> Path:
    """The file of a benchmark.

    Args:
        path: the file, a folder that has it, or a dataset of the hub, "owner/name".
        name: of the file, where `path` is not the file itself.

    Raises:
        FileNotFoundError: there is none.
        OSError: the hub cannot be reached or refuses it.
    """
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} has no {name}.")
        return path / name
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path.as_posix()):
        raise FileNotFoundError(f"No file or folder {path}; a dataset of the hub has the form owner/name.")
    try:
        return Path(hf_hub_download(path.as_posix(), name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(f"No file or folder {path} here, and no {name} in {path} on the hub: {error}") from error


def field_of(fields: Mapping[str, Any], name: str, *, where: str) -> Any:
    """A field that must be there.

    Raises:
        ValueError: it is missing; the message lists those that are there.
    """
    if name not in fields:
        raise ValueError(f"{where} has no {name!r}; it has {', '.join(sorted(map(str, fields))) or 'nothing'}.")
    return fields[name]


def read_questions(prompts: Path, questions: Path | None = None) -> tuple[dict[str, Any], ...]:
    """Read prompts and questions of one's own: what no public format has to be followed for.

    Args:
        prompts: a JSON object a line with `prompt`, and where they are wanted `tag`, `groups` and `questions`; or a
            text file with a prompt a line.
        questions: a JSON object a line with `prompt`, the text of one of them, and `question`; both files may have
            `answer` ("Yes" if not given), `skills`, `number` and `parents` with a question. None where the prompts
            have their questions, or are to be asked as they are: "Does this image show ...?".

    Raises:
        OSError: a file cannot be read.
        ValueError: a line that cannot be used, or a question about a prompt that is not there; it names the line.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "prompts.txt"
        ...     _ = path.write_text("a red cow")
        ...     read_questions(path)[0]["atoms"][0]["question"]
        'Does this image show "a red cow"?'
    """
    rows = _plain_prompts(prompts)
    asked: dict[str, list[Any]] = {row["prompt"]: list(row.get("questions", ())) for row in rows}
    if len(asked) < len(rows):
        raise ValueError(f"{prompts} has a prompt twice; questions are found by it.")
    for place, fields in [] if questions is None else json_lines(questions):
        prompt = field_of(fields, "prompt", where=place)
        if prompt not in asked:
            raise ValueError(f"{place}: {prompt!r} is no prompt of {prompts}.")
        asked[prompt].append({name: value for name, value in fields.items() if name != "prompt"})
    return tuple(_own_record(row, asked[row["prompt"]]) for row in rows)


def _plain_prompts(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".txt":
        rows = [{"prompt": line.strip()} for line in read_text(path).split("\n") if line.strip()]
        if not rows:
            raise ValueError(f"{path} is empty: expected a prompt a line.")
        return rows
    found = json_lines(path)
    for place, fields in found:
        check_text(field_of(fields, "prompt", where=place), where=place)
    return [fields for _, fields in found]


def _own_record(row: Mapping[str, Any], questions: Sequence[Any]) -> dict[str, Any]:
    prompt = row["prompt"]
    atoms = [_own_atom(fields, place, prompt) for place, fields in enumerate(questions, start=1)]
    atoms = atoms or [Atom(f'Does this image show "{prompt}"?')]
    return question_record(prompt, atoms, tag=str(row.get("tag", "all")), groups=tuple(row.get("groups", ())))


def _own_atom(fields: Any, place: int, prompt: str) -> Atom:
    known = set(Atom.__dataclass_fields__)
    if not isinstance(fields, dict) or set(fields) - known or "question" not in fields:
        raise ValueError(
            f"{prompt!r}: a question is an object with question and any of {', '.join(sorted(known - {'question'}))}; "
            f"got {shortened(repr(fields), 120)}."
        )
    lists = {name: tuple(fields.get(name, ())) for name in ("skills", "parents")}
    return Atom(**{"number": place, **fields, **lists})
