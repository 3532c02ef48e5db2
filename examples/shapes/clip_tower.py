"""The picture tower of `shapes-clip` as a beginning for BLIP's, whose layers are alike."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BlipVisionModel, CLIPModel

LAYER_MODULES = {
    "layer_norm1": "layer_norm1",
    "layer_norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "self_attn.projection",
}


@torch.no_grad()
def start_from_clip(tower: BlipVisionModel, clip: CLIPModel, pixels: Tensor) -> None:
    """Gives `tower` the weights of CLIP's, as nearly as its architecture allows.

    BLIP has no layer norm before its layers. Its centring, scale and shift go into the embeddings; for the deviation of
    each patch, by which it divides, stands the mean deviation in the pictures `pixels`, `(B, 3, S, S)`, normalised. The
    activations differ, too: GELU, not its approximation.
    """
    theirs = {name.removeprefix("vision_model."): tensor for name, tensor in clip.state_dict().items()}
    deviation = clip.vision_model.embeddings(pixels).std(dim=-1).mean()
    tower.load_state_dict(_embeddings(theirs, deviation) | _layers(theirs, tower.config.num_hidden_layers))


def _embeddings(theirs: dict[str, Tensor], deviation: Tensor) -> dict[str, Tensor]:
    scale, shift = theirs["pre_layrnorm.weight"] / deviation, theirs["pre_layrnorm.bias"]
    cls, positions, kernel = (
        theirs[f"embeddings.{name}"]
        for name in ("class_embedding", "position_embedding.weight", "patch_embedding.weight")
    )
    return {
        "embeddings.class_embedding": (scale * (cls - cls.mean()))[None, None],
        "embeddings.position_embedding": (scale * (positions - positions.mean(1, keepdim=True)) + shift)[None],
        "embeddings.patch_embedding.weight": scale[:, None, None, None] * (kernel - kernel.mean(0)),
        "embeddings.patch_embedding.bias": torch.zeros_like(shift),
    }


def _layers(theirs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    ours = {f"post_layernorm.{kind}": theirs[f"post_layernorm.{kind}"] for kind in ("weight", "bias")}
    for layer in (f"encoder.layers.{index}" for index in range(count)):
        for kind in ("weight", "bias"):
            parts = [theirs[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            ours[f"{layer}.self_attn.qkv.{kind}"] = torch.cat(parts)
            ours |= {f"{layer}.{new}.{kind}": theirs[f"{layer}.{old}.{kind}"] for old, new in LAYER_MODULES.items()}
    return ours
