"""Answers on disk: a file for each, named by a digest of question, images, model and sampling."""

# Why not diskcache (5.6.3)? Its JSONDisk unpickles what a database marks as a pickle, so that a foreign cache runs code
# (CVE-2025-69872, without a fix); SQLite's write-ahead log needs all processes on one machine, and clusters share
# folders; and one damaged page stops all further writing, where a damaged file costs one question.

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fk_reward.documents import parse_json
from fk_reward.durable_files import naming_path
from fk_reward.rewards.vlm_judge.endpoint import redact_text
from fk_reward.rewards.vlm_judge.engine import Messages, Sampling

logger = logging.getLogger(__name__)

_OWNER_ALONE = 0o700  # prompts and descriptions of images are private
_PART = re.compile(r"[0-9a-f]{2}")


def answer_key(  # noqa: PLR0913 (all that an answer depends on)
    images: Sequence[Image.Image],
    messages: Messages,
    *,
    engine: str,
    template: str,
    sampling: Sampling,
    stopped: bool = False,
) -> str:
    """Digest of all that an answer depends on: images, instructions with prompt, model, template and sampling.

    Args:
        images: images of the conversation; their pixels count, not a file.
        messages: the conversation.
        engine: name of the engine.
        template: name of the template.
        sampling: how the answer is drawn.
        stopped: whether it was ended by `sampling.enough`; a whole answer has the same key with that and without.

    Example:
        >>> image = Image.new("RGB", (2, 2), "red")
        >>> key = answer_key([image], [], engine="a", template="rubric", sampling=Sampling(max_new_tokens=8))
        >>> key == answer_key([image], [], engine="b", template="rubric", sampling=Sampling(max_new_tokens=8))
        False
    """
    asked = {"messages": messages, "engine": engine, "template": template, "max_new_tokens": sampling.max_new_tokens}
    asked |= {"temperature": sampling.temperature, "seed": sampling.seed} | ({"stopped": True} if stopped else {})
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


class AnswerCache:
    """A folder of answers that several processes may read and write at once.

    An answer is written to a temporary file, which is then renamed in one step, so that a reader finds the complete
    answer or none. A file that was damaged otherwise counts as absent, with a warning, and is replaced. Files also hold
    the question, for human readers; deleting any of them is safe.

    Args:
        folder: made when the first answer is written; only its owner may look into it. One that others may look into
            is closed to them if it holds answers alone, else there is a warning.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = AnswerCache(folder)
        ...     cache.put("0123", "<answer>1</answer>", about={"prompt": "a cat"})
        ...     cache.get("0123"), cache.get("4567")
        ('<answer>1</answer>', None)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._closed: set[Path] = set()

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
        logger.warning("%s does not hold a complete answer; the judge is asked again.", path)
        return None

    def put(self, key: str, answer: str, *, about: dict[str, str]) -> None:
        """Keep an answer; `about` is for human readers of the file."""
        path = self._path(key)
        with naming_path(path):
            self._write(path, key, answer, about=about)

    def _write(self, path: Path, key: str, answer: str, *, about: dict[str, str]) -> None:
        self._close_to_others(path.parent)
        about = {name: redact_text(text) if name == "engine" else text for name, text in about.items()}
        record = {"key": key, **about, "answer": answer}
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", dir=path.parent, prefix=".", suffix=".tmp", delete=False
        ) as file:
            try:  # tempfile makes it for its owner alone, whatever the umask; the name is unique, also among threads
                json.dump(record, file, ensure_ascii=False, indent=1)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _close_to_others(self, part: Path) -> None:
        """Make the folder and the part of it that an answer goes to, for the owner alone."""
        part.mkdir(mode=_OWNER_ALONE, parents=True, exist_ok=True)
        if part in self._closed:
            return
        _close(part)
        if _is_open(self.folder):
            if all(_PART.fullmatch(entry.name) for entry in self.folder.iterdir()):
                _close(self.folder)
            else:
                logger.warning("%s holds files other than answers, and its mode lets other users read it.", self.folder)
        self._closed.add(part)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _is_open(folder: Path) -> bool:
    return os.name == "posix" and bool(stat.S_IMODE(folder.stat().st_mode) & ~_OWNER_ALONE)


def _close(folder: Path) -> None:
    if _is_open(folder):
        try:
            folder.chmod(_OWNER_ALONE)
        except OSError as error:  # another user owns it
            logger.warning("%s cannot be made private, so that other users may read its answers: %s", folder, error)
