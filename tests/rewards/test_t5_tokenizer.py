"""T5's tokenizer from SentencePiece's file alone, against the same vocabulary as tokenizer.json."""

from __future__ import annotations

import struct

import pytest
from transformers import AutoTokenizer, T5Tokenizer

from fk_reward.rewards.t5_tokenizer import load_t5_tokenizer, read_sentencepiece

PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.5), ("▁a", -3.0), ("▁red", -4.25), ("▁c", -5.0)]
PIECES += [("at", -4.0), ("▁Yes", -6.0), ("▁No", -6.5), ("é", -7.0), ("s", -3.5)]
TEXTS = ["a red cat", "Yes", "No cats", "  two  red\ncafés ", "", "Yes</s> a"]


def integer(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return integer(number << 3) + integer(content)
    return integer(number << 3 | 2) + integer(len(content)) + content


def model_file(*, model_type=1, charsmap=b""):
    """`sentencepiece_model.proto`, by its definition: scores are fixed 32-bit fields, kinds and types integers."""
    content = b""
    for place, (piece, score) in enumerate(PIECES):
        kind = {0: 3, 1: 3, 2: 2}.get(place, 1)
        score = integer(2 << 3 | 5) + struct.pack("<f", score)
        content += field(1, field(1, piece.encode()) + score + field(3, kind))
    content += field(2, field(3, model_type) + field(4, 300) + field(7, b"corpus.txt"))
    return content + field(3, field(1, b"nmt_nfkc") + field(2, charsmap)) + field(5, field(1, b""))


def test_tokens_are_those_of_the_same_vocabulary(tmp_path):
    (tmp_path / "spiece").mkdir()
    (tmp_path / "spiece" / "spiece.model").write_bytes(model_file())
    sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(100))]
    T5Tokenizer(vocab=PIECES + sentinels).save_pretrained(tmp_path / "json")
    (tmp_path / "json" / "spiece.model").unlink(missing_ok=True)
    ours, expected = load_t5_tokenizer(tmp_path / "spiece"), AutoTokenizer.from_pretrained(tmp_path / "json")
    assert load_t5_tokenizer(tmp_path / "json")(TEXTS)["input_ids"] == expected(TEXTS)["input_ids"]
    assert ours(TEXTS)["input_ids"] == expected(TEXTS)["input_ids"]
    assert ours("Yes")["input_ids"] == [8, 1]
    assert len(ours) == len(PIECES) + 100
    assert (ours.pad_token_id, ours.eos_token_id) == (0, 1)


def test_pieces_scores_and_characters_are_read():
    assert read_sentencepiece(model_file(charsmap=b"abc")) == (PIECES, b"abc")
    assert read_sentencepiece(model_file()) == (PIECES, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no pieces"),
        (model_file()[:40], "damaged"),
        (b"not a model at all", "not a file of SentencePiece"),
        (model_file(model_type=2), "not a unigram model"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_sentencepiece(content)


def test_a_folder_without_either_file_raises(tmp_path):
    with pytest.raises((OSError, ValueError)):
        load_t5_tokenizer(tmp_path)
