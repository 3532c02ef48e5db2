"""Benchmarks of questions, and the public formats of DPG-Bench, GenAI-Bench, UniGenBench++ and T2I-CompBench++.

The files are the user's copies; nothing of them is in this package. Where a benchmark's own judge is another model, the
figures are comparable between methods here, not with published ones: `docs/question_benchmarks.md` says which are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.questions.atoms import (
    Atom,
    check_text,
    field_of,
    find_file,
    json_lines,
    question_record,
    read_questions,
    read_text,
)
from fk_reward.benchmarks.questions.geneval2 import FILE, SOURCE, read_geneval2
from fk_reward.benchmarks.questions.judge import SOFT_TIFA, Style
from fk_reward.benchmarks.questions.loading import question_judge
from fk_reward.benchmarks.task import Task, TaskOptions
from fk_reward.documents import parse_json
from fk_reward.text import shortened

Record = dict[str, Any]

VQASCORE_QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
"""That of Lin et al. 2024, arXiv 2404.01291."""


def geneval2_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """GenEval 2: `--prompts geneval2_data.jsonl`, CC BY-NC 4.0 (Kamath et al. 2025, arXiv 2512.16853)."""
    records = read_geneval2(_file(options, FILE, source=SOURCE))
    return Task("geneval2", records, question_judge(options, SOFT_TIFA))


def dpg_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """DPG-Bench: `--prompts dpg_bench.csv`; questions that depend on one another (Hu et al. 2024, arXiv 2403.05135)."""
    records = read_dpg(_file(options, "dpg_bench.csv", source="https://github.com/TencentQQGYLab/ELLA, dpg_bench/"))
    return Task("dpg-bench", records, question_judge(options, Style("DPG-Bench", "dpg")))


def genai_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """GenAI-Bench: `--prompts genai_image.json --questions genai_skills.json` (Li et al. 2024, arXiv 2406.13743)."""
    source = "https://huggingface.co/datasets/zhiqiulin/GenAI-Bench-527"
    path = _file(options, "genai_image.json", source=source)
    records = read_genai(path, options.questions)
    return Task("genai-bench", records, question_judge(options, Style("GenAI-Bench", "vqascore", "")))


def unigenbench_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """UniGenBench++: `--prompts test_prompts_en.csv`, short or long, en or zh (Wang et al. 2025, arXiv 2510.18701)."""
    source = "https://github.com/CodeGoat24/UniGenBench, data/"
    records = read_unigenbench(_file(options, "test_prompts_en.csv", source=source))
    return Task("unigenbench", records, question_judge(options, Style("UniGenBench++", "share", " Answer yes or no.")))


def compbench_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """T2I-CompBench++: `--prompts color_val.txt`, or a folder of such files (Huang et al. 2023, arXiv 2307.06350)."""
    path = _file(options, "", source="https://github.com/Karine-Huang/T2I-CompBench, examples/dataset/")
    records = read_compbench(path, options.questions)
    style = Style("T2I-CompBench++", "product", " Answer yes or no.")
    return Task("t2i-compbench", records, question_judge(options, style))


def own_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """Prompts and questions of one's own, scored by Soft-TIFA: `--prompts FILE --questions FILE`."""
    if options.prompts is None:
        raise ValueError("Name a file of prompts: --prompts FILE, a prompt a line or a JSON object a line.")
    records = read_questions(options.prompts, options.questions)
    return Task("questions", records, question_judge(options, Style("questions")))


def _file(options: TaskOptions, name: str, *, source: str) -> Path:
    if options.prompts is None:
        raise ValueError(f"Name your copy of the prompts: --prompts {name or 'FILE'}, from {source}.")
    if not name and options.prompts.is_dir():
        return options.prompts
    return find_file(options.prompts, name)


def csv_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with a header, each with its place, "file:row".

    Args:
        path: the file.
        columns: that it must have.

    Raises:
        ValueError: no rows, a column that is missing, or a row of another length.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey="", strict=True)
    found = sorted(reader.fieldnames or ())
    if missing := [name for name in columns if name not in found]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(found) or 'none'}.")
    try:
        rows = [(f"{path}:{number}", row) for number, row in enumerate(reader, start=1)]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no CSV: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows.")
    for place, row in rows:
        if "" in row or None in row.values():
            raise ValueError(f"{place}: the row has not as many fields as the header.")
    return rows


def read_dpg(path: Path) -> tuple[Record, ...]:
    """Read DPG-Bench's `dpg_bench.csv`: a row for each question, those of a prompt together.

    Columns: `item_id`, `text` (the prompt), `proposition_id`, `dependency` (ids, comma-separated; 0 for none),
    `tuple` ("entity - whole (dog)"), `question_natural_language`, and some that are not read. What stands before the
    bracket of the tuple is the category, and before its dash the broad category, as in `compute_dpg_bench.py`. That
    script skips the first row of the file; here all count.

    Raises:
        OSError: it cannot be read.
        ValueError: a row that cannot be used.
    """
    columns = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
    rows: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for place, row in csv_rows(path, columns):
        rows.setdefault(row["item_id"], []).append((place, row))
    return tuple(_dpg_record(item, part) for item, part in rows.items())


def _dpg_record(item: str, rows: Sequence[tuple[str, dict[str, str]]]) -> Record:
    place, first = rows[0]
    if any(row["text"] != first["text"] for _, row in rows):
        raise ValueError(f"{place}: item {item!r} has several prompts.")
    atoms = [_dpg_atom(where, row) for where, row in rows]
    return _placed(place, first["text"], atoms, tag="DPG-Bench", groups=(), id=item)


def _dpg_atom(place: str, row: Mapping[str, str]) -> Atom:
    category = row["tuple"].split("(")[0].strip()
    broad = category.split("-")[0].strip()
    try:
        number = int(row["proposition_id"])
        parents = tuple(int(part) for part in row["dependency"].split(","))
    except ValueError as error:
        raise ValueError(f"{place}: proposition_id and dependency should be whole numbers: {error}") from error
    return Atom(row["question_natural_language"], "Yes", tuple(dict.fromkeys((broad, category))), number, parents)


def read_genai(path: Path, skills: Path | None = None) -> tuple[Record, ...]:
    """Read GenAI-Bench's `genai_image.json`, or `prompts.txt`, and `genai_skills.json`.

    The first maps an index ("00000") to an object with `prompt`; `models`, the ratings of published images, is not
    read here. `prompts.txt` has a prompt a line. The second maps a skill ("counting") to the indices of its prompts.
    The question is VQAScore's about the whole prompt; a prompt counts for each of its skills.

    Args:
        path: of the prompts.
        skills: of the skills; None for `genai_skills.json` beside the prompts, where it is.

    Raises:
        OSError: a file cannot be read.
        ValueError: another format, or a skill of a prompt that is not there.
    """
    prompts = _genai_prompts(path)
    beside = path.parent / "genai_skills.json"
    found = skills if skills is not None else beside if beside.is_file() else None
    groups = _genai_skills(found, set(prompts)) if found is not None else {}
    return tuple(
        _placed(
            f"{path}, {index}",
            prompt,
            [Atom(VQASCORE_QUESTION.replace("{prompt}", prompt))],
            tag=next((name for name in ("basic", "advanced") if name in groups.get(index, ())), "untagged"),
            groups=groups.get(index, ()),
        )
        for index, prompt in prompts.items()
    )


def _genai_prompts(path: Path) -> dict[int, str]:
    text = read_text(path)
    if path.suffix == ".txt":
        return {place: check_text(line, where=f"{path}:{place + 1}") for place, line in enumerate(_lines(text))}
    content = parse_json(text, path)
    if not isinstance(content, dict) or not content or not all(str(index).isdecimal() for index in content):
        raise ValueError(f"{path} should map indices such as '00000' to prompts, got {shortened(text, 80)}.")
    found = {}
    for index, fields in content.items():
        where = f"{path}, {index}"
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: expected an object with a prompt, got {shortened(repr(fields), 80)}.")
        found[int(index)] = check_text(field_of(fields, "prompt", where=where), where=where)
    return found


def _genai_skills(path: Path, known: set[int]) -> dict[int, list[str]]:
    content = parse_json(read_text(path), path)
    if not isinstance(content, dict) or not all(isinstance(places, list) for places in content.values()):
        raise ValueError(f"{path} should map skills to lists of indices.")
    groups: dict[int, list[str]] = {}
    for skill, places in content.items():
        for place in places:
            if not str(place).isdecimal() or int(place) not in known:
                raise ValueError(f"{path}: {skill!r} names the prompt {place!r}, which is not there.")
            groups.setdefault(int(place), []).append(skill)
    return groups


def read_unigenbench(path: Path) -> tuple[Record, ...]:
    """Read a prompt file of UniGenBench++: `test_prompts_en.csv`, `..._en_long.csv`, `..._zh.csv`, `..._zh_long.csv`.

    Columns: `index`, `prompt_en` and `sub_dims_en` (or `prompt_zh`, `sub_dims_zh`). The latter is JSON with
    `Testpoints`, `Testpoint Description`, one for each, and `Primary Categories`. A test point "Attribute - Color"
    counts for both "Attribute" and itself, as in `qwenvl_72b_en_eval.py`. That script asks a judge about all test
    points at once and for an analysis; here each is a question of its own.

    Raises:
        OSError: it cannot be read.
        ValueError: a row that cannot be used.
    """
    header = read_text(path).split("\n", 1)[0]
    language = next((name for name in ("en", "zh") if f"prompt_{name}" in header), "en")
    prompt, details = f"prompt_{language}", f"sub_dims_{language}"
    rows = csv_rows(path, ("index", prompt, details))
    return tuple(_unigen_record(place, row[prompt], row[details]) for place, row in rows)


def _unigen_record(place: str, prompt: str, text: str) -> Record:
    details = parse_json(text, place)
    if not isinstance(details, dict):
        raise ValueError(f"{place}: expected a JSON object, got {shortened(text, 80)}.")
    names = ("Testpoints", "Testpoint Description")
    points, texts = (field_of(details, name, where=place) for name in names)
    if not isinstance(points, list) or not isinstance(texts, list) or len(points) != len(texts):
        raise ValueError(f"{place}: {' and '.join(names)} should be lists of one length.")
    atoms = [_unigen_atom(number, *pair, place) for number, pair in enumerate(zip(points, texts, strict=True), 1)]
    theme = str(details.get("Primary Categories", "all"))
    return _placed(place, prompt, atoms, tag=theme, groups=(theme,))


def _unigen_atom(number: int, point: Any, text: Any, place: str) -> Atom:
    point, text = (check_text(part, where=place) for part in (point, text))
    broad = point.split("-", 1)[0].strip()
    question = f'The image was drawn from a prompt that asks for "{text}" ({point}). Does the image show it?'
    return Atom(question, "Yes", tuple(dict.fromkeys((broad, point))), number)


BINDING = ("color", "shape", "texture")
"""Categories of T2I-CompBench that BLIP-VQA judges phrase by phrase; of others the whole prompt is asked about."""

_FILE_ENDINGS = ("_val_unseen", "_val_seen", "_val", "_train", "")
# An article and up to three words that are no prepositions and no forms of "to be".
_WORD = r"(?!(?:and|at|behind|by|for|from|in|is|are|near|next|of|on|or|over|that|to|under|which|with)\b)[\w'-]+"
_PHRASE = rf"(?:an?|the)(?: {_WORD}){{1,3}}"
_PHRASES = re.compile(rf"({_PHRASE}) and ({_PHRASE})", re.IGNORECASE)


def read_compbench(path: Path, questions: Path | None = None) -> tuple[Record, ...]:
    """Read prompt files of T2I-CompBench++: `color_val.txt`, `spatial_val.txt`, ..., a prompt a line.

    The category is the file's name without `_val`. BLIP-VQA asks about each noun phrase of a prompt ("a green bench?")
    and multiplies the answers; the phrases are found by spaCy there. Here "a green bench and a blue bowl" is taken
    apart by rule, which is exact for prompts of that form; others need a file of phrases.

    Args:
        path: a file, or a folder, whose `*_val.txt` are read.
        questions: a JSON object a line with `prompt` and `phrases`, a list of texts; None for the rule.

    Raises:
        OSError: a file cannot be read.
        ValueError: an unknown category, or a prompt that the rule cannot take apart.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "color_val.txt"
        ...     _ = path.write_text("a green bench and a blue bowl")
        ...     [atom["question"] for atom in read_compbench(path)[0]["atoms"]]
        ['a green bench?', 'a blue bowl?']
    """
    files = sorted(path.glob("*_val.txt")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} has no file such as color_val.txt.")
    phrases = {} if questions is None else _phrases_of(questions)
    return tuple(record for file in files for record in _compbench_records(file, phrases))


def _compbench_records(path: Path, phrases: Mapping[str, Sequence[str]]) -> list[Record]:
    ending = next(ending for ending in _FILE_ENDINGS if path.stem.endswith(ending))
    category = path.stem.removesuffix(ending) if ending else path.stem
    lines = list(enumerate(_lines(read_text(path)), start=1))
    return [
        _placed(
            f"{path}:{number}",
            prompt,
            _compbench_atoms(category, prompt, phrases, f"{path}:{number}"),
            tag=category,
            groups=(category,),
        )
        for number, prompt in lines
    ]


def _compbench_atoms(category: str, prompt: str, phrases: Mapping[str, Sequence[str]], place: str) -> list[Atom]:
    if category not in BINDING:
        return [Atom(f'Does this image show "{prompt}"?')]
    found: Sequence[str] | None = phrases.get(prompt)
    if found is None:
        match = _PHRASES.fullmatch(prompt.strip().rstrip("."))
        if match is None:
            raise ValueError(
                f"{place}: {prompt!r} is not of the form 'a green bench and a blue bowl', and has no phrases: name a "
                'file of them, --questions FILE, with lines such as {"prompt": ..., "phrases": ["a green bench", ...]}.'
            )
        found = match.groups()
    return [Atom(f"{phrase}?", "Yes", (), number) for number, phrase in enumerate(found, start=1)]


def _phrases_of(path: Path) -> dict[str, list[str]]:
    found = {}
    for place, fields in json_lines(path):
        prompt, phrases = (field_of(fields, name, where=place) for name in ("prompt", "phrases"))
        if not isinstance(phrases, list) or not phrases:
            raise ValueError(f"{place}: phrases should be a list of texts, got {shortened(repr(phrases), 80)}.")
        found[prompt] = [check_text(phrase, where=place) for phrase in phrases]
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _placed(place: str, prompt: str, atoms: Sequence[Atom], **fields: Any) -> Record:
    try:
        return question_record(prompt, atoms, **fields)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
