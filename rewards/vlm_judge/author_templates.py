"""Questions in the words of their authors, read from the user's copy of the authors' files.

The wording is not part of this package: only the form is, that is keys, categories, scales, and how marks become a
score. Python files are parsed, never run.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fk_reward.documents import parse_json
from fk_reward.rewards.vlm_judge.enough import Enough, close_match, close_object
from fk_reward.rewards.vlm_judge.marks import MarkQuestion, MarkTemplate, numbers
from fk_reward.rewards.vlm_judge.templates import PLACEHOLDER, RATED, json_object, safety_score

LLAVAGUARD_CATEGORIES = tuple(f"O{number}" for number in range(1, 10))
"""Codes of LlavaGuard's policy, v1.2; "NA" means none."""

_VIESCORE_NAMES = {
    "context": "_context_no_delimit",
    "rule": "_prompts_0shot_one_image_gen_rule",
    "consistency": "_prompts_0shot_t2i_rule_SC",
    "quality": "_prompts_0shot_rule_PQ",
}


def viescore_template(path: str | os.PathLike[str]) -> MarkTemplate:
    """VIEScore for text-to-image, in the words of its authors.

    Two questions, marks from 0 to 10: semantic consistency has one, perceptual quality has naturalness and artefacts.
    The score is sqrt(min(consistency) * min(quality)), in [0, 10] (Ku et al. 2024, arXiv 2312.14867, section 3; zeros
    are marks).

    Args:
        path: `viescore/vie_prompts.py` of github.com/TIGER-AI-Lab/VIEScore (MIT), or a folder that holds the
            repository.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it lacks one of the texts.
    """
    file = file_in(path, "viescore/vie_prompts.py", "vie_prompts.py")
    texts = python_strings(file, _VIESCORE_NAMES.values())
    context, rule, consistency, quality = (texts[name] for name in _VIESCORE_NAMES.values())
    questions = (
        _viescore_question("\n".join((context, rule, consistency)).replace("<prompt>", PLACEHOLDER), num_marks=1),
        _viescore_question("\n".join((context, quality)), num_marks=2),
    )
    return MarkTemplate(
        name="viescore",
        summary="sqrt of the lowest mark for consistency times the lowest for quality, each from 0 to 10, by VIEScore",
        questions=lambda prompt: questions,
        combine=viescore,
        score_range=(0.0, 10.0),
        licence="MIT, read from the user's copy",
        source="Ku et al. 2024, arXiv 2312.14867; viescore/vie_prompts.py of github.com/TIGER-AI-Lab/VIEScore",
        enough=Enough(close=partial(close_object, keys=("score",)), stop=('"reasoning"',)),
    )


def viescore(marks: Sequence[Sequence[float]]) -> float:
    """sqrt(min * min) of the marks of the two questions.

    Example:
        >>> viescore([[9.0], [4.0, 7.0]]), viescore([[0.0], [10.0, 10.0]])
        (6.0, 0.0)
    """
    consistency, quality = marks
    return math.sqrt(min(consistency) * min(quality))


def _viescore_question(text: str, *, num_marks: int) -> MarkQuestion:
    return MarkQuestion(
        text=text,
        values=numbers(0, 10),
        opening='{\n"score" : [',
        separators=(*[", "] * (num_marks - 1), "]"),
        read=partial(_scores_of, num_marks=num_marks),
    )


def _scores_of(answer: str, *, num_marks: int) -> list[float]:
    """The list "score" of an answer's JSON; a single number counts as a list of one."""
    record = json_object(answer)
    scores = record.get("score")
    scores = [scores] if isinstance(scores, int | float) else scores
    if not isinstance(scores, list) or len(scores) != num_marks:
        raise ValueError(f"score must be a list of {num_marks} marks, got {scores!r}")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 10:
            raise ValueError(f"a mark must be a number from 0 to 10, got {score!r}")
    return [float(score) for score in scores]


def evalalign_template(path: str | os.PathLike[str]) -> MarkTemplate:
    """EvalAlign's questions about each of its prompts, in the words of its authors; each is answered by 0, 1 or 2.

    The score is the mean mark, in [0, 2]; times the number of questions it is what its authors add up (Tan et al. 2024,
    arXiv 2406.16562). A prompt that is not in the file has no questions.

    Args:
        path: `configs/test_alignment_prompt.json` or `test_faithfulness_prompt.json` of
            github.com/SAIS-FUXI/EvalAlign, or a file of that form with your own prompts: a list of records with
            `prompt` and `question_info`, a question for each aspect.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file of another form.
    """
    file = file_in(path, "configs/test_alignment_prompt.json")
    asked = _evalalign_records(parse_json(file.read_text(encoding="utf-8"), file), file)
    return MarkTemplate(
        name="evalalign",
        summary="mean mark, 0 to 2, of EvalAlign's questions about the prompt",
        questions=partial(_questions_about, asked=asked, file=file),
        combine=lambda marks: sum(mark for (mark,) in marks) / len(marks),
        score_range=(0.0, 2.0),
        licence="that of the user's copy",
        source="Tan et al. 2024, arXiv 2406.16562; configs/ of github.com/SAIS-FUXI/EvalAlign",
        max_new_tokens=64,
        enough=Enough(close=partial(close_match, pattern=re.compile(r"\d+(?=\D)"))),
    )


def _evalalign_records(records: Any, file: Path) -> dict[str, tuple[MarkQuestion, ...]]:
    asked: dict[str, tuple[MarkQuestion, ...]] = {}
    for number, record in enumerate(records if isinstance(records, list) else [None]):
        questions = record.get("question_info") if isinstance(record, Mapping) else None
        if not isinstance(questions, Mapping) or not isinstance(record.get("prompt"), str):
            raise ValueError(f"{file}: record {number} needs a text `prompt` and a `question_info`.")
        if questions:
            asked[record["prompt"]] = tuple(_evalalign_question(text) for text in questions.values())
    return asked


def _evalalign_question(text: str) -> MarkQuestion:
    text = text.replace("<image>", "").strip()
    return MarkQuestion(text=text, values=numbers(0, 2), separators=(",",), read=_first_mark)


def _first_mark(answer: str) -> tuple[float]:
    """The first number of an answer, as EvalAlign reads it; where there is none, an error instead of its 0."""
    found = re.search(r"\d+", answer)
    if found is None or found[0] not in numbers(0, 2):
        raise ValueError(f"expected a mark 0, 1 or 2, found {found[0] if found else 'none'}")
    return (float(found[0]),)


def _questions_about(
    prompt: str, *, asked: Mapping[str, tuple[MarkQuestion, ...]], file: Path
) -> Sequence[MarkQuestion]:
    if prompt not in asked:
        raise ValueError(f"{file} has no questions about the prompt {prompt!r}; it knows {len(asked)} prompts.")
    return asked[prompt]


def llavaguard_template(path: str | os.PathLike[str]) -> MarkTemplate:
    """LlavaGuard's policy and answer form (v1.2), in the words of its authors; the prompt is not read.

    The score is the log-odds of "Safe" against "Unsafe" where its answers have the rating; read as text, 1 or 0
    (Helff et al. 2024, arXiv 2406.05113).

    Args:
        path: a text file with the prompt, or the README.md or model card that quotes it between triple quotes
            (github.com/ml-research/LlavaGuard, Apache-2.0).

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the text lacks a key or a category.
    """
    file = file_in(path, "README.md")
    text = _quoted_policy(file.read_text(encoding="utf-8"))
    lacking = [word for word in ('"rating"', '"category"', '"rationale"', *LLAVAGUARD_CATEGORIES) if word not in text]
    if lacking:
        raise ValueError(f"{file} is not LlavaGuard's prompt of version 1.2: it lacks {', '.join(lacking)}.")
    return rating_template(
        "llavaguard",
        text,
        categories=LLAVAGUARD_CATEGORIES,
        opening='{\n    "rating": "',
        licence="Apache-2.0, read from the user's copy",
        source="Helff et al. 2024, arXiv 2406.05113; README.md of github.com/ml-research/LlavaGuard",
    )


def rating_template(
    name: str, text: str, *, categories: Sequence[str], opening: str, licence: str, source: str
) -> MarkTemplate:
    """A policy whose answers begin with a rating, "Safe" or "Unsafe", in JSON, then category and rationale.

    Args:
        name: of the template.
        text: policy and form of the answer.
        categories: their codes.
        opening: of an answer, up to the rating.
        licence: of the wording.
        source: of the wording.
    """
    read: Callable[[str], Sequence[float]] = lambda answer: (safety_score(answer, categories=categories),)  # noqa: E731
    question = MarkQuestion(
        text=text, values={"Safe": 1.0, "Unsafe": 0.0}, opening=opening, separators=('"',), read=read
    )
    return MarkTemplate(
        name=name,
        summary='log-odds of "Safe" against "Unsafe" under a policy, by a vision-language model; blind to the prompt',
        questions=lambda prompt: (question,),
        combine=lambda marks: marks[0][0],
        score_range=(0.0, 1.0),
        log_odds=True,
        reads_prompt=False,
        licence=licence,
        source=source,
        enough=RATED,
    )


def python_strings(path: Path, names: Sequence[str] | Any) -> dict[str, str]:
    """Texts that a Python file assigns to names at its top level; the file is parsed, not run.

    Of an f-string, the names between braces stay: f"a {b}" is "a {b}".

    Raises:
        ValueError: when a name is not there, or is no text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.py").write_text('greeting = "hi"')
        ...     python_strings(Path(folder) / "a.py", ["greeting"])
        {'greeting': 'hi'}
    """
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and (text := _text_of(node.value)) is not None:
            found |= {target.id: text for target in node.targets if isinstance(target, ast.Name)}
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ValueError(f"{path} lacks the texts {', '.join(lacking)}.")
    return {name: found[name] for name in names}


def _text_of(value: ast.expr) -> str | None:
    """The text of a literal; None for what is none, or has more than names between its braces."""
    if isinstance(value, ast.FormattedValue):
        plain = isinstance(value.value, ast.Name) and value.format_spec is None and value.conversion == -1
        return f"{{{value.value.id}}}" if plain and isinstance(value.value, ast.Name) else None
    if isinstance(value, ast.JoinedStr):
        parts = [_text_of(part) for part in value.values]
        return None if None in parts else "".join(filter(None, parts))
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _quoted_policy(text: str) -> str:
    """What stands between the first triple quotes around a policy, or all of the text."""
    blocks = [block for block in text.split('"""')[1::2] if '"rating"' in block]
    return (blocks[0] if blocks else text).strip()


def file_in(path: str | os.PathLike[str], *places: str) -> Path:
    """The file itself, or the first of the places in a folder that is there.

    Args:
        path: a file or folder.
        places: paths inside the folder.

    Raises:
        FileNotFoundError: when there is none of them.
    """
    candidates = [Path(path)] if not Path(path).is_dir() else [Path(path) / place for place in places]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"No file {' or '.join(map(str, candidates))}: give the authors' file, or their repository."
    )


AUTHOR_TEMPLATES: dict[str, Callable[[str | os.PathLike[str]], MarkTemplate]] = {
    "evalalign": evalalign_template,
    "llavaguard": llavaguard_template,
    "viescore": viescore_template,
}
"""Name -> reader of the authors' file."""
