"""The file format of a trace: plain JSON in which every number comes back bit for bit.

Python writes the shortest decimal that reads back as the same double, and a float32 is exactly a double, so
lists of numbers are enough; the type of each tensor is fixed (`trace_fields`) and its shape is that
of the lists.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fk_reward.documents import parse_json
from fk_reward.image_files import read_image
from fk_reward.sampling.trace_fields import STEP_DTYPES, TRACE_DTYPES

FORMAT = "fk_reward.SteeringTrace"
VERSION = 1
_LATER_FIELDS: dict[str, Any] = {
    **{"notes": [], "provenance": None, "search": "fk"},
    **dict.fromkeys(("sample_steps", "num_preview_calls", "budget")),
}
"""Fields that files of this version may lack: written before there were any."""
_LATER_STEP_FIELDS: dict[str, Any] = {"reward_parts": {}, "level": None, "judges": []}
"""The same of a step."""


def dumps(trace: Any, *, thumbnails: bool) -> str:
    """Encode a trace.

    Args:
        trace: a `SteeringTrace`. (Its module imports this one.)
        thumbnails: include the thumbnails as PNG in base64.

    Raises:
        TypeError: the config holds something that JSON cannot say.
        ValueError: the config holds NaN or infinity.
    """
    record = {"format": FORMAT, "version": VERSION, **_plain(trace)}
    record["steps"] = [_plain(step) for step in trace.steps]
    for step in record["steps"]:
        images = step["thumbnails"]
        step["thumbnails"] = _encode_images(images) if thumbnails and images is not None else None
        step["reward_parts"] = {name: _listed(scores.tolist()) for name, scores in step["reward_parts"].items()}
    record["provenance"] = None if trace.provenance is None else asdict(trace.provenance)
    return json.dumps(record, allow_nan=False)


def loads(text_or_path: str | Path, records: Mapping[str, type]) -> dict[str, Any]:
    """Decode what `dumps` wrote into keyword arguments of the records.

    Args:
        text_or_path: JSON text, or the path of a file.
        records: the dataclasses of the "trace", of a "step" and of its "provenance", whose fields the file must have.

    Returns:
        The fields of the trace; its `steps` and its `provenance` are dictionaries of their fields.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that is wrong with it.

    Example:
        >>> loads("[1, 2]", {})
        Traceback (most recent call last):
        ValueError: Expected a trace written by SteeringTrace.to_json ('fk_reward.SteeringTrace'), got other JSON.
    """
    record = _parse(text_or_path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"Expected a trace written by SteeringTrace.to_json ({FORMAT!r}), got other JSON.")
    if record.get("version") != VERSION:
        got = record.get("version")
        raise ValueError(f"Expected version {VERSION} of the trace format, got {got!r}; update fk-reward.")
    del record["format"], record["version"]
    # no other search that is listed takes gradients, so that nothing is unknown in their files
    gradients = None if record.get("search") == "fk-gradient" else 0
    record = {**_LATER_FIELDS, "num_gradient_calls": gradients, **record}
    _check_names(record, records["trace"])
    return {
        **record,
        **_tensors(record, {name: dtype for name, dtype in TRACE_DTYPES.items() if record[name] is not None}),
        "prompts": tuple(record["prompts"]),
        "notes": tuple(record["notes"]),
        "steps": [_step(step, records["step"]) for step in record["steps"]],
        "provenance": _provenance(record["provenance"], records["provenance"]),
    }


def _plain(record: Any) -> dict[str, Any]:
    """Fields as lists and numbers; thumbnails stay a tensor."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {n: _listed(v.tolist()) if isinstance(v, Tensor) and n != "thumbnails" else v for n, v in values.items()}


def _listed(values: Any) -> Any:
    """Lists of numbers in which -inf is a text: JSON has no word for it."""
    if isinstance(values, list):
        return [_listed(value) for value in values]
    return "-inf" if values == -math.inf else values


def _numbers(values: Any) -> Any:
    """What `_listed` made, back again."""
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return -math.inf if values == "-inf" else values


def _parse(text_or_path: str | Path) -> Any:
    text = text_or_path
    if isinstance(text, Path) or not text.lstrip().startswith(("{", "[")):
        if not Path(text).is_file():
            raise FileNotFoundError(f"Expected JSON or the path of a trace; no such file: {str(text)[:200]!r}.")
        text = Path(text).read_text(encoding="utf-8")
    return parse_json(
        text, "Expected a trace written by SteeringTrace.to_json, got something else", parse_constant=_refuse_constant
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"A trace holds finite numbers only, got {name}.")


def _step(record: Any, kind: type) -> dict[str, Any]:
    if isinstance(record, dict):
        record |= {name: value for name, value in _LATER_STEP_FIELDS.items() if name not in record}
    _check_names(record, kind)
    present = {name: dtype for name, dtype in STEP_DTYPES.items() if record[name] is not None}
    images = _decode_images(record["thumbnails"]) if present.pop("thumbnails", None) else None
    parts = _tensors(record["reward_parts"], dict.fromkeys(record["reward_parts"], torch.float32))
    fields_of_tensors = {**_tensors(record, present), "thumbnails": images, "reward_parts": parts}
    return {**record, **fields_of_tensors, "judges": tuple(record["judges"])}


def _provenance(record: Any, kind: type) -> dict[str, Any] | None:
    if record is None:
        return None
    if isinstance(record, dict):
        record.setdefault("lookahead", 1)  # files of before there was any
    _check_names(record, kind)
    return {**record, "seeds": tuple(record["seeds"])}


def _check_names(record: Any, kind: type) -> None:
    known = {field.name for field in fields(kind)}
    got = set(record) if isinstance(record, dict) else {type(record).__name__}
    if got != known:
        missing, unknown = sorted(known - got), sorted(got - known)
        raise ValueError(f"{kind.__name__}: missing fields {missing}, unknown fields {unknown}.")


def _tensors(record: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    return {name: _tensor(name, record[name], dtype) for name, dtype in dtypes.items()}


def _tensor(name: str, values: Any, dtype: torch.dtype) -> Tensor:
    values = _numbers(values)
    try:
        tensor = torch.tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected lists of numbers: {error}") from error
    if tensor.tolist() != values:
        raise ValueError(f"{name}: expected numbers that {dtype} holds exactly, got {values}.")
    return tensor


def _encode_images(images: Tensor) -> list[list[str]]:
    return [[_encode_image(image) for image in group] for group in images]


def _encode_image(image: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _decode_images(images: list[list[str]]) -> Tensor:
    return torch.stack([torch.stack([_decode_image(image) for image in group]) for group in images])


def _decode_image(text: str) -> Tensor:
    try:
        image = read_image(base64.b64decode(text, validate=True))
    except (ValueError, TypeError) as error:  # no base64, no image
        raise ValueError(f"thumbnails: expected PNG images in base64: {error}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
