"""What BLIP's text encoder makes of a prompt while it looks at a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import BlipTextModel, BlipVisionModel


def fused_states(
    vision: BlipVisionModel, text: BlipTextModel, pixel_values: Tensor, tokens: Mapping[str, Tensor]
) -> Tensor:
    """Read each prompt in the light of its picture (BLIP, Li et al. 2022, arXiv 2201.12086, section 3.1).

    One pass of the vision tower and one of the text encoder for the whole batch. The text encoder sees both ways, and
    its cross-attention sees all states of the picture; that of padding changes nothing.

    Args:
        vision: the picture's tower.
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

    B: number of pictures, S: their side, L: length of the padded prompts, D: width of the text encoder.
    """
    pictures = vision(pixel_values=pixel_values).last_hidden_state
    return text(**tokens, encoder_hidden_states=pictures).last_hidden_state[:, 0]
