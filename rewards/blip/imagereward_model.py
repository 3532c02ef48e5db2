"""ImageReward's network: BLIP's two towers from transformers, and a linear MLP on the fused state."""

from __future__ import annotations

from torch import Tensor, nn

from fk_reward.rewards.blip.fusion import fused_states
from fk_reward.rewards.blip.imagereward_sizes import ImageRewardSizes


class ImageRewardModel(nn.Module):
    """Picture and prompt to one number, before it is standardised; weights are random until loaded.

    The network of Xu et al. 2023 (arXiv 2304.05977) as `ImageReward/ImageReward.py` of github.com/THUDM/ImageReward
    has it: layer norms of the vision tower with eps 1e-6, those of the text encoder with 1e-12, and an MLP without
    activations.

    Args:
        sizes: of all parts.
        head_size: of the attention heads of both towers, which no tensor shows; in BLIP always 64.

    Raises:
        ValueError: when `head_size` does not divide the widths of both towers.
    """

    def __init__(self, sizes: ImageRewardSizes, *, head_size: int = 64) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        sizes.check_head_size(head_size)
        self.sizes, self.head_size = sizes, head_size
        self.vision = BlipVisionModel(BlipVisionConfig(**_vision_settings(sizes, head_size)))
        self.text = BlipTextModel(BlipTextConfig(**_text_settings(sizes, head_size)), add_pooling_layer=False)
        self.mlp = make_mlp(sizes.mlp_widths)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score normalised pictures (B, 3, S, S) with prompts of tokens (B, L); returns (B,) in float32.

        B: number of pictures, S: their side, L: length of the padded prompts.
        """
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.mlp(fused_states(self.vision, self.text, pixel_values, tokens)).squeeze(1).float()


def make_mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Five linear layers with the official dropouts between the first four, and no activation.

    Example:
        >>> make_mlp((768, 1024, 128, 64, 16))[7]
        Linear(in_features=16, out_features=1, bias=True)
    """
    first, second, third, fourth, fifth = (
        nn.Linear(inputs, outputs) for inputs, outputs in zip(widths, (*widths[1:], 1), strict=True)
    )
    dropouts = nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)
    return nn.Sequential(first, dropouts[0], second, dropouts[1], third, dropouts[2], fourth, fifth)


def _vision_settings(sizes: ImageRewardSizes, head_size: int) -> dict[str, int | float]:
    return {
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_mlp_width,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_width // head_size,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
    }


def _text_settings(sizes: ImageRewardSizes, head_size: int) -> dict[str, int | float | None]:
    return {
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "hidden_size": sizes.text_width,
        "encoder_hidden_size": sizes.vision_width,
        "intermediate_size": sizes.text_mlp_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_width // head_size,
        "layer_norm_eps": 1e-12,
        **{f"{kind}_token_id": None for kind in ("bos", "eos", "sep")},  # only generation would use them
    }
