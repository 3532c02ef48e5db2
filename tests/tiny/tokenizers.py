"""Tokenizers that spell a prompt letter by letter, so that they need no vocabulary file."""

from __future__ import annotations

import string

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

MAX_CLIP_TOKENS = 77


def make_clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer over single bytes; start and end tokens have the two highest ids, as in the real one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=MAX_CLIP_TOKENS)


def make_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer over single printable characters; id 0 pads and id 1 ends, as in the real one."""
    letters = [letter for letter in string.printable if not letter.isspace()]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*specials, *((letter, -3.0) for letter in letters)], extra_ids=0, model_max_length=77)
