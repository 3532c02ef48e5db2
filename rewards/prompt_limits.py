"""How much of a prompt a model reads: text encoders cut it and say so, language models refuse it.

Text encoders (CLIP, BLIP) read a prompt as plain text and cut it at the length on the card, with a warning
(`TruncationLog`). Language models get the prompt inside a template with an image. There a `<|im_end|>` or an image
token in the prompt would end the turn or shift the image, and rotary positions beyond those of the training give
numbers without meaning, or an index error on the device. Both are refused, by name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fk_reward.text import shortened

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

UNSTATED_POSITIONS = 4096
"""Limit for models with relative positions that state none, as T5: their cost grows with the square of the length."""

_SHOWN_IN_ERRORS, _SHOWN_IN_WARNINGS = 80, 200  # letters of a prompt

_CONTROL_TOKENS: WeakKeyDictionary[Any, dict[tuple[int, str], tuple[str, ...]]] = WeakKeyDictionary()
"""Of each tokenizer, by its number of tokens and the image's placeholder: asking it takes longer than a prompt."""

logger = logging.getLogger(__name__)


def control_tokens(tokenizer: PreTrainedTokenizerBase, image_token: object = None) -> tuple[str, ...]:
    """Texts that a tokenizer takes for control tokens, and the image's placeholder; the longest first.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        >>> control_tokens(BertTokenizer(vocab={word: index for index, word in enumerate(words)}), "<image>")
        ('<image>', '[MASK]', '[CLS]', '[PAD]', '[SEP]', '[UNK]')
    """
    known, key = _CONTROL_TOKENS.setdefault(tokenizer, {}), (len(tokenizer), str(image_token or ""))
    if key not in known:
        known[key] = _control_tokens(tokenizer, image_token)
    return known[key]


def _control_tokens(tokenizer: PreTrainedTokenizerBase, image_token: object) -> tuple[str, ...]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    found |= {str(image_token)} if image_token else set()
    # The longest first: an error should name "<|im_end|>", not a shorter token inside it. Blank ones are in any prompt.
    return tuple(sorted(filter(str.strip, found), key=lambda token: (-len(token), token)))


def refuse_control_tokens(texts: Iterable[str], tokens: Iterable[str]) -> None:
    """Refuse prompts that hold a control token.

    Args:
        texts: prompts.
        tokens: as `control_tokens` gives them.

    Raises:
        ValueError: for the first prompt with one; the message names both.

    Example:
        >>> refuse_control_tokens(["a <image> cat"], ["<image>"])
        Traceback (most recent call last):
        ValueError: A prompt must not contain '<image>', a control token of the model; got 'a <image> cat'.
    """
    tokens = tuple(tokens)
    for text in texts:
        for token in tokens:
            if token in text:
                shown = shortened(repr(text), _SHOWN_IN_ERRORS)
                raise ValueError(f"A prompt must not contain {token!r}, a control token of the model; got {shown}.")


def num_positions(config: Any) -> int:
    """Positions of a language model: `max_position_embeddings` of its (text) configuration, else `UNSTATED_POSITIONS`.

    Args:
        config: of transformers.

    Example:
        >>> from transformers import Phi3Config, T5Config
        >>> num_positions(Phi3Config(max_position_embeddings=512)), num_positions(T5Config())
        (512, 4096)
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else UNSTATED_POSITIONS


def require_positions(lengths: Iterable[int], prompts: Iterable[str], positions: int, *, answer: int = 0) -> None:
    """Refuse rows of tokens that are longer than the model.

    Args:
        lengths: tokens of each row: template, image and prompt.
        prompts: the prompt of each row, for the message.
        positions: as `num_positions` gives them.
        answer: tokens that are to be generated behind the row.

    Raises:
        ValueError: for the first row that is too long.

    Example:
        >>> require_positions([9, 700], ["a cat", "a long tale"], 512)
        Traceback (most recent call last):
        ValueError: Image and prompt take 700 tokens, but the model has 512 positions: shorten 'a long tale'.
    """
    for length, prompt in zip(lengths, prompts, strict=True):
        if length + answer > positions:
            behind = f" and the answer {answer}" if answer else ""
            raise ValueError(
                f"Image and prompt take {length} tokens{behind}, but the model has {positions} positions: "
                f"shorten {shortened(repr(prompt), _SHOWN_IN_ERRORS)}."
            )


class TruncationLog:
    """Logs a warning for each new prompt that is longer than what is read of it.

    Args:
        tokenizer: that of the text encoder.
        max_tokens: number of tokens that are read of a prompt, special ones included.
        name: of the reward, for the warning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, name: str) -> None:
        self.tokenizer, self.max_tokens, self.name = tokenizer, max_tokens, name
        self._seen: set[str] = set()

    def check(self, prompts: Sequence[str], attention_mask: Tensor) -> None:
        """Warn of what is cut from those prompts that were not checked before.

        Args:
            prompts: B strings.
            attention_mask: (B, L) of their tokens as they are read: what has fewer than `max_tokens` is whole.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        full = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length >= self.max_tokens]
        fresh = [prompt for prompt in dict.fromkeys(full) if prompt not in self._seen]
        if not fresh:
            return
        self._seen.update(fresh)  # a sampler scores the same prompt at many steps: one warning is enough
        rows = self.tokenizer(fresh, verbose=False, split_special_tokens=True)["input_ids"]
        for prompt, tokens in zip(fresh, rows, strict=True):
            if (cut := len(tokens) - self.max_tokens) > 0:
                shown = shortened(repr(prompt), _SHOWN_IN_WARNINGS)
                logger.warning("%s reads %d tokens; %d were cut from %s.", self.name, self.max_tokens, cut, shown)
