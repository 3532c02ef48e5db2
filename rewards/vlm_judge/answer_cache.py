"""Answers on disk: a file for each, named by what was asked of whom."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fk_reward.documents import parse_json
from fk_reward.rewards.vlm_judge.engine import Messages, Sampling

logger = logging.getLogger(__name__)


def answer_key(
    images: Sequence[Image.Image], messages: Messages, *, engine: str, template: str, sampling: Sampling
) -> str:
    """Digest of all that an answer depends on: pictures, instructions with prompt, model, template and sampling.

    Args:
        images: pictures of the conversation; their pixels count, not a file.
        messages: the conversation.
        engine: name of the engine.
        template: name of the template.
        sampling: how the answer is drawn.

    Example:
        >>> picture = Image.new("RGB", (2, 2), "red")
        >>> key = answer_key([picture], [], engine="a", template="rubric", sampling=Sampling(max_new_tokens=8))
        >>> key == answer_key([picture], [], engine="b", template="rubric", sampling=Sampling(max_new_tokens=8))
        False
    """
    asked = {"messages": messages, "engine": engine, "template": template, **dataclasses.asdict(sampling)}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


class AnswerCache:
    """A folder of answers that several processes may read and write at once.

    An answer is written to a file of its own, which then takes its place in one step, so that a reader finds the whole
    answer or none. A file that was damaged otherwise counts as absent, with a warning, and is replaced. Files hold the
    question, too, for a person to read; deleting any of them is safe.

    Args:
        folder: made when the first answer is written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = AnswerCache(folder)
        ...     cache.put("0123", "<answer>1</answer>", about={"prompt": "a cat"})
        ...     cache.get("0123"), cache.get("4567")
        ('<answer>1</answer>', None)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> str | None:
        """The answer, or None."""
        path = self._path(key)
        try:
            record = parse_json(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if isinstance(record, dict) and record.get("key") == key and isinstance(record.get("answer"), str):
            return record["answer"]
        logger.warning("%s does not hold a whole answer; the judge is asked again.", path)
        return None

    def put(self, key: str, answer: str, *, about: dict[str, str]) -> None:
        """Keep an answer; `about` is for people who read the file."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"key": key, **about, "answer": answer}
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", dir=path.parent, prefix=".", suffix=".tmp", delete=False
        ) as file:
            try:
                json.dump(record, file, ensure_ascii=False, indent=1)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
