"""Trains the byte-pair tokenizer that `shapes-sd` and `shapes-clip` share."""

from __future__ import annotations

import json
import string
from pathlib import Path

import typer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from fk_reward.shapes import train_prompts

MAX_LENGTH = 16
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
END_OF_WORD = "</w>"


def train_tokenizer() -> CLIPTokenizer:
    """Learns merges until every word of the grammar is one token; other words fall back to letters."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    characters = string.ascii_lowercase + string.digits + string.punctuation
    trainer = trainers.BpeTrainer(
        vocab_size=1000, end_of_word_suffix=END_OF_WORD, initial_alphabet=list(characters), show_progress=False
    )
    tokenizer.train_from_iterator([*characters, *(prompt.text for prompt in train_prompts())], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    pieces = [*characters, *(c + END_OF_WORD for c in characters), *("".join(merge) for merge in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *SPECIAL_TOKENS]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def main(output_dir: Path = Path("runs/tokenizer")) -> None:
    """Trains and saves the tokenizer."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(output_dir)
    longest = max(len(tokenizer(prompt.text).input_ids) for prompt in train_prompts())
    print(f"{len(tokenizer)} tokens, longest prompt {longest} of {MAX_LENGTH}")


if __name__ == "__main__":
    typer.run(main)
