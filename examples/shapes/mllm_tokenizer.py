"""The tokenizer of the shapes MLLM, in the manner of Phi-3's: byte-pair with bytes for what it does not know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END, USER, ASSISTANT, END_OF_TEXT = "<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>"
ROLES = {"bos_token": "<s>", "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": "<unk>"}
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", END_OF_TEXT, ASSISTANT, END, USER)


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
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
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
