"""What ImageReward and image-text matching share: BLIP's text encoder attends to the image; its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.prompt_limits import TruncationLog

if TYPE_CHECKING:
    import torch
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel, PreTrainedTokenizerBase


def fused_states(
    vision: BlipVisionModel, text: BlipTextModel, pixel_values: Tensor, tokens: Mapping[str, Tensor]
) -> Tensor:
    """Read each prompt with attention to its image (BLIP, Li et al. 2022, arXiv 2201.12086, section 3.1).

    One pass of the vision tower and one of the text encoder for the whole batch. The text encoder sees both ways, and
    its cross-attention sees all states of the image; that of padding changes nothing.

    Args:
        vision: the image tower.
        text: a text encoder with cross-attention, of the tower's width.
        pixel_values: (B, 3, S, S), normalised.
        tokens: `input_ids` and `attention_mask`, each (B, L).

    Returns:
        (B, D) last state of each prompt's first token, `[CLS]`, in the dtype of the weights.

    Example:
        >>> import torch
        >>> from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel
        >>> small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> vision = BlipVisionModel(BlipVisionConfig(**small, image_size=16, patch_size=8))
        >>> ids = {"bos_token_id": 1, "sep_token_id": 2}
        >>> text = BlipTextModel(BlipTextConfig(**small, **ids, encoder_hidden_size=8, vocab_size=9))
        >>> tokens = {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.ones(1, 2)}
        >>> fused_states(vision, text, torch.zeros(1, 3, 16, 16), tokens).shape
        torch.Size([1, 8])

    B: number of images, S: their side, L: length of the padded prompts, D: width of the text encoder.
    """
    image_states = vision(pixel_values=pixel_values).last_hidden_state
    return text(**tokens, encoder_hidden_states=image_states).last_hidden_state[:, 0]


class PromptTokens:
    """Tokenizes prompts, pads them to `max_tokens` and cuts them there, with one logged warning a prompt.

    Tokens of the last batches are kept: a sampler asks for the same prompts at every scoring step.

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
        self._batches = KeptBatches()

    def __call__(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """Tokens of B prompts on the CPU: `input_ids` and `attention_mask`, each (B, max_tokens); not written to."""
        return self._batches.get((tuple(prompts), self.max_tokens), lambda: self._make(prompts))

    def on(self, device: torch.device, prompts: list[str]) -> dict[str, Tensor]:
        """The same on a device."""
        return {name: value.to(device) for name, value in self(prompts).items()}

    def _make(self, prompts: list[str]) -> dict[str, Tensor]:
        # Always padded to max_tokens, as the official code does: so scores do not depend on the batch.
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,  # "[SEP]" in a prompt is text and must not end it
            return_token_type_ids=False,
            return_tensors="pt",
        )
        self._truncation.check(prompts, tokens["attention_mask"])
        return dict(tokens)


def with_blip_tokens(tokenizer: BertTokenizer) -> BertTokenizer:
    """Add BLIP's `[DEC]` and `[ENC]` where they are absent, in place and in this order; return the tokenizer.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat")
        >>> tokenizer = with_blip_tokens(BertTokenizer(vocab={word: index for index, word in enumerate(words)}))
        >>> len(tokenizer), tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"])
        (8, [6, 7])
    """
    # The order gives the ids that the weights were trained with: [DEC] before [ENC].
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer
