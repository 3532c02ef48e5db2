"""Saying, once a prompt, how much of it a model does not read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fk_reward.user_text import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 200
"""Letters of a prompt that a warning shows."""

logger = logging.getLogger(__name__)


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

    def check(self, prompts: Sequence[str]) -> None:
        """Tokenize those prompts that were not checked before, and warn of what is cut from them."""
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._seen]
        if not fresh:
            return
        self._seen.update(fresh)
        rows = self.tokenizer(fresh, verbose=False, split_special_tokens=True)["input_ids"]
        for prompt, tokens in zip(fresh, rows, strict=True):
            if (cut := len(tokens) - self.max_tokens) > 0:
                shown = shortened(repr(prompt), _SHOWN)
                logger.warning("%s reads %d tokens; %d were cut from %s.", self.name, self.max_tokens, cut, shown)
