"""Prompts as the tokens of BERT, of one length; says what it cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fk_reward.rewards.truncation import TruncationLog

if TYPE_CHECKING:
    from transformers import BatchEncoding, BertTokenizer, PreTrainedTokenizerBase


class PromptTokens:
    """Tokenizes prompts, pads them to `max_tokens` and cuts them there, with one logged warning a prompt.

    Args:
        tokenizer: that of the text encoder.
        max_tokens: number of tokens that the model reads of a prompt, special ones included.
        name: of the reward, for the warning.

    Raises:
        ValueError: when `max_tokens` leaves no room for a word between the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, name: str) -> None:
        if max_tokens <= len(tokenizer("")["input_ids"]):
            raise ValueError(f"max_tokens must leave room besides the special tokens, got {max_tokens}.")
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._truncation = TruncationLog(tokenizer, max_tokens=max_tokens, name=name)

    def __call__(self, prompts: list[str]) -> BatchEncoding:
        """Tokens of B prompts: `input_ids` and `attention_mask`, each (B, max_tokens)."""
        self._truncation.check(prompts)
        return self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,  # "[SEP]" in a prompt is text, and ends nothing
            return_token_type_ids=False,
            return_tensors="pt",
        )


def with_blip_tokens(tokenizer: BertTokenizer) -> BertTokenizer:
    """Add BLIP's `[DEC]` and `[ENC]` where they are absent, in place and in this order; return the tokenizer.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat")
        >>> tokenizer = with_blip_tokens(BertTokenizer(vocab={word: index for index, word in enumerate(words)}))
        >>> len(tokenizer), tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"])
        (8, [6, 7])
    """
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer
