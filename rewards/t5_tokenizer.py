"""T5's tokenizer from a folder that has only SentencePiece's file, as the checkpoints of CLIP-FlanT5 on the hub."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, T5Tokenizer
from transformers.utils import cached_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXTRA_IDS = 100  # sentinels behind the pieces, in every published T5


def load_t5_tokenizer(path: str | os.PathLike[str], *, revision: str = "main") -> PreTrainedTokenizerBase:
    """Load a T5 tokenizer, from `tokenizer.json` where there is one, else from `spiece.model`.

    transformers needs the packages sentencepiece and protobuf for the latter; here neither is.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of the hub repository.

    Raises:
        OSError: when there is neither file.
        ValueError: when `spiece.model` is not a unigram model of SentencePiece.
    """
    file = None if _find(path, "tokenizer.json", revision) else _find(path, "spiece.model", revision)
    if file is None:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    pieces, characters = read_sentencepiece(Path(file).read_bytes())
    sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(_EXTRA_IDS))]
    return T5Tokenizer(vocab=[*pieces, *sentinels], _spm_precompiled_charsmap=characters, extra_ids=_EXTRA_IDS)


def _find(path: str | os.PathLike[str], name: str, revision: str) -> str | None:
    return cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def read_sentencepiece(content: bytes) -> tuple[list[tuple[str, float]], bytes | None]:
    """Read a unigram model of SentencePiece: its pieces with their scores, and its table of characters.

    Fields of `sentencepiece_model.proto`: pieces (1) with piece (1) and score (2); trainer_spec (2) with model_type
    (3), where 1 is unigram; normalizer_spec (3) with precompiled_charsmap (2).

    Args:
        content: of the file.

    Raises:
        ValueError: for another kind of file or model.

    Example:
        >>> read_sentencepiece(bytes([10, 8, 10, 1, 97, 21, 0, 0, 128, 191]))
        ([('a', -1.0)], None)
    """
    pieces: list[tuple[str, float]] = []
    characters = None
    try:
        for number, value in _fields(content):
            if number == 1:
                fields = dict(_fields(value))
                pieces.append((fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0]))
            elif number == 2 and dict(_fields(value)).get(3, b"\x01") != b"\x01":
                raise ValueError("it is not a unigram model")
            elif number == 3:
                characters = dict(_fields(value)).get(2) or None
    except (KeyError, IndexError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"This is not a file of SentencePiece, or a damaged one: {error!r}.") from error
    if not pieces:
        raise ValueError("This is not a file of SentencePiece: it has no pieces.")
    return pieces, characters


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the fields of a protobuf message; a variable-length integer as its raw bytes."""
    place = 0
    while place < len(content):
        key, place = _integer(content, place)
        kind = key & 7
        if kind == 0:
            _, end = _integer(content, place)
        elif kind == 2:
            length, place = _integer(content, place)
            end = place + length
        elif kind in (1, 5):
            end = place + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"This is not a file of SentencePiece: it has a field of kind {kind}.")
        if end > len(content):
            raise IndexError("the file ends early")
        yield key >> 3, content[place:end]
        place = end


def _integer(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
