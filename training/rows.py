"""Rows of data: plain mappings from JSON, JSON lines, Parquet, `datasets` or memory, and the values in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from fk_reward.documents import parse_json

_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class RowProblem:
    """Why a row cannot be used.

    Attributes:
        origin: the row, "file:row".
        reason: what is wrong with it.
    """

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


RowSource: TypeAlias = "str | Path | Iterable[Mapping[str, Any]]"
"""A file, a `datasets.Dataset`, or mappings in memory."""

Row: TypeAlias = "Mapping[str, Any] | RowProblem"
RecordT = TypeVar("RecordT")


def read_rows(source: RowSource) -> list[tuple[str, Row]]:
    """Read rows. The format of a file is recognised by its content, not by its name.

    Args:
        source: a JSON file with a list of objects, a file with one JSON object a line, a Parquet file, a
            `datasets.Dataset` (one split of it), or any iterable of mappings.

    Returns:
        For each row its origin ("file:n", n counted from 1; lines for JSON lines), and its content or its problem.

    Raises:
        FileNotFoundError: when there is no such file.
        ImportError: for Parquet without pyarrow.
        TypeError: for another kind of source, such as a dictionary of splits.
        ValueError: for a file in none of these formats, and for no rows at all.

    Example:
        >>> read_rows([{"prompt": "a cat", "path": "cat.png", "label": 1}])
        [('row:1', {'prompt': 'a cat', 'path': 'cat.png', 'label': 1})]
    """
    if isinstance(source, (str, Path)):
        name, rows = str(source), _file_rows(Path(source))
    elif isinstance(source, Mapping) or not isinstance(source, Iterable):
        hint = f"; choose one of its splits {list(source)}" if isinstance(source, Mapping) else ""
        raise TypeError(f"Expected a file, a dataset or a list of rows, got {type(source).__name__}{hint}.")
    else:
        name, rows = "row", enumerate(_undecoded(source), start=1)
    found = [(f"{name}:{number}", _checked(f"{name}:{number}", row)) for number, row in rows]
    if not found:
        raise ValueError(f"{source if isinstance(source, (str, Path)) else 'The data'} has no rows.")
    return found


def image_folder(source: RowSource, image_root: str | Path | None) -> Path:
    """Folder that relative paths of images start from: `image_root`, else that of the file, else the working one."""
    if image_root is None and isinstance(source, (str, Path)):
        return Path(source).parent
    return Path(image_root or "")


def parse_rows(
    rows: Iterable[tuple[str, Row]], parse: Callable[[Mapping[str, Any], str], RecordT]
) -> tuple[list[RecordT], list[RowProblem]]:
    """Make a record of each row, and a problem of each row that cannot be parsed.

    Args:
        rows: from `read_rows`.
        parse: makes a record of a row and its origin; its TypeError or ValueError becomes a problem.
    """
    records: list[RecordT] = []
    problems: list[RowProblem] = []
    for origin, row in rows:
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            records.append(parse(row, origin))
        except (TypeError, ValueError) as error:
            problems.append(RowProblem(origin, str(error)))
    return records, problems


def _checked(origin: str, row: Any) -> Row:
    if isinstance(row, (Mapping, RowProblem)):
        return row
    return RowProblem(origin, f"expected an object with keys, got {type(row).__name__}")


# Why files are not read by `datasets.load_dataset` (5.2): one damaged line, or half of a character in one prompt, fails
# the whole file without its number; a column's type is guessed, so that the rating "5" becomes 5 and a prompt that
# looks like a date a datetime; a path with brackets is a pattern that matches nothing; and a copy goes to the cache.
def _file_rows(path: Path) -> Iterable[tuple[int, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"No such preference file: {path}.")
    with path.open("rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return enumerate(_parquet_rows(path), start=1)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors put a byte-order mark before UTF-8
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is neither Parquet nor text in UTF-8: {error}") from error
    is_list = text.lstrip().startswith("[")
    return enumerate(parse_json(text, path), start=1) if is_list else _json_lines(text, path)


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    # Not `splitlines`, which also splits at characters that a JSON string may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            origin = f"{path}:{number}"
            try:
                yield number, parse_json(line, origin)
            except ValueError as error:
                yield number, RowProblem(origin, str(error).removeprefix(f"{origin}: "))


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(
            f"Reading Parquet ({path}) needs pyarrow; it comes with the extra: pip install 'fk-reward[train]'."
        ) from error
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} is a damaged Parquet file: {error}") from error


def _undecoded(rows: Iterable[Any]) -> Iterable[Any]:
    """The rows; those of a dataset with undecoded images, so that a broken one is reported with its row."""
    features = getattr(rows, "features", None)
    if not features or not hasattr(rows, "cast_column"):
        return rows
    from datasets import Image

    for name, feature in features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))  # type: ignore[attr-defined]
    return rows


def first_of(row: Mapping[str, Any], *keys: str, optional: bool = False) -> Any:
    """Value of the first of several keys that a row has, where None and NaN count as absent.

    Raises:
        ValueError: when all are absent; if `optional`, only when the row has not even the keys.

    Example:
        >>> first_of({"path": None, "image": "a.png"}, "path", "image")
        'a.png'
    """
    found = [row[key] for key in keys if not is_missing(row.get(key))]
    if not found and not (optional and set(keys) & set(row)):
        raise ValueError(f"lacks {' or '.join(keys)}; it has {key_names(row)}")
    return found[0] if found else None


def key_names(row: Mapping[Any, Any]) -> list[str]:
    """The keys of a row for an error message, sorted; they may be of any type."""
    return sorted(map(str, row))


# A rating is an int in JSON, and a numpy.float32, a decimal.Decimal or a tensor without dimensions in rows of pandas
# and of `datasets` in the format of NumPy or PyTorch. All of these are numbers; a bool and a string are not.
def plain_value(value: Any) -> Any:
    """Convert a scalar of NumPy or PyTorch to Python's; return anything else unchanged.

    Example:
        >>> plain_value(np.float32(0.5)), plain_value(np.str_("a")), plain_value(np.array(True)), plain_value([1])
        (0.5, 'a', True, [1])
    """
    if isinstance(value, np.generic) or (getattr(value, "shape", None) == () and hasattr(value, "item")):
        return value.item()
    return value


def finite_number(value: Any, name: str) -> float:
    """A finite number of any library.

    Args:
        value: int, float, `decimal.Decimal`, or a scalar of NumPy or PyTorch.
        name: for the message.

    Raises:
        TypeError: for anything else, bools and strings too.
        ValueError: for NaN and infinities; pandas writes NaN for what is missing.

    Example:
        >>> finite_number(np.int64(5), "rating")
        5.0
        >>> finite_number(float("nan"), "rating")
        Traceback (most recent call last):
        ValueError: rating must be finite, got nan
    """
    number = plain_value(value)
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, (Real, Decimal)):
        raise TypeError(f"{name} must be a number, got {short(number)}")
    try:
        found = float(number)
    except OverflowError:  # an int of JSON may have any number of digits
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {short(number)}")
    return found


def truth_value(value: Any, name: str) -> bool:
    """A truth value of any library: a bool, or the numbers 0 and 1.

    Raises:
        ValueError: for anything else.

    Example:
        >>> truth_value(np.int8(1), "label"), truth_value(False, "label"), truth_value(1.0, "label")
        (True, False, True)
    """
    found = plain_value(value)
    if not isinstance(found, (bool, Real, Decimal)) or found not in (0, 1):
        raise ValueError(f"{name} must be 0 or 1, got {short(found)}")
    return bool(found)


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, or the NaN that pandas uses for it.

    Example:
        >>> is_missing(None), is_missing(np.float64("nan")), is_missing(""), is_missing(0)
        (True, True, False, False)
    """
    found = plain_value(value)
    return found is None or (isinstance(found, float) and math.isnan(found))


def short(value: Any) -> str:
    """The value for an error message: at most 80 characters, or its type alone if it is nested too deeply."""
    try:
        text = repr(value)
    except RecursionError:
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
