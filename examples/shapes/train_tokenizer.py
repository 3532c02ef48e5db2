"""Trains the tokenizers: one that `shapes-sd` and `shapes-clip` share, and that of the MLLM, made like Phi-3's."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path

import cyclopts
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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


END, USER, ASSISTANT, END_OF_TEXT = "<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>"
ROLES = {"bos_token": "<s>", "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": "<unk>"}
MLLM_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", END_OF_TEXT, ASSISTANT, END, USER)


def train_mllm_tokenizer(texts: Iterable[str], *, vocab_size: int = 1000) -> Tokenizer:
    """Learns merges until every word of the texts is one token."""
    tokenizer = Tokenizer(models.BPE(unk_token=ROLES["unk_token"], fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    specials = [AddedToken(token, special=True, normalized=False) for token in MLLM_SPECIAL_TOKENS]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {**vocab, **{letter: len(vocab) + i for i, letter in enumerate(letters)}}
    return Tokenizer.from_str(json.dumps(content))


def save_mllm_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the two files of a hub folder; texts are not opened with a token."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        **ROLES,
        "model_max_length": 512,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    cyclopts.run(main)
