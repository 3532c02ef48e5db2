"""Names of ImageReward's tensors: ours, which are transformers', and those of the official file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_REPLACEMENTS = (
    ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj."),
    ("vision.encoder.layers.", "blip.visual_encoder.blocks."),
    ("vision.post_layernorm.", "blip.visual_encoder.norm."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    ("text.", "blip.text_encoder."),
    ("mlp.", "mlp.layers."),
)
"""(ours, theirs): beginnings of names, and (with a dot in front) parts of those of a layer of the vision tower."""

UNUSED = (
    r"blip\.(vision_proj|text_proj|itm_head)\.(weight|bias)",
    r"blip\.text_encoder\.embeddings\.position_ids",
)
"""Tensors of the official file that no score depends on: BLIP's heads for pre-training, and the numbers 0, 1, 2, ..."""


def official_name(name: str) -> str:
    """Translate a name of `ImageRewardModel.state_dict()` into that of `ImageReward.pt`.

    Example:
        >>> official_name("vision.encoder.layers.3.self_attn.projection.weight")
        'blip.visual_encoder.blocks.3.attn.proj.weight'
        >>> official_name("text.encoder.layer.0.crossattention.self.key.bias")
        'blip.text_encoder.encoder.layer.0.crossattention.self.key.bias'
    """
    in_vision = name.startswith("vision.")
    for ours, theirs in _REPLACEMENTS:
        if name.startswith(ours) or (in_vision and ours.startswith(".")):
            name = name.replace(ours, theirs, 1)
    return name


def match_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a file the names of a model, one to one.

    Args:
        found: tensors with official names.
        expected: `state_dict()` of the model; its values may be on the meta device.

    Returns:
        Tensors of `found` with the names of `expected`.

    Raises:
        ValueError: when tensors are missing, unexpected (neither expected nor in `UNUSED`), or of other shapes.

    Example:
        >>> import torch
        >>> names = match_tensors({"mlp.layers.0.bias": torch.ones(1)}, {"mlp.0.bias": torch.zeros(1)})
        >>> names
        {'mlp.0.bias': tensor([1.])}
    """
    theirs = {name: official_name(name) for name in expected}
    used = set(theirs.values())
    unknown = [name for name in found if name not in used and not any(re.fullmatch(rule, name) for rule in UNUSED)]
    _refuse("lacks tensors", [name for name in theirs.values() if name not in found])
    _refuse("has tensors that ImageReward does not have", unknown)
    matched = {ours: found[name] for ours, name in theirs.items()}
    shapes = {name: (matched[name].shape, tensor.shape) for name, tensor in expected.items()}
    _refuse(
        "has tensors of unexpected shapes",
        [f"{theirs[name]} {tuple(got)}, not {tuple(want)}" for name, (got, want) in shapes.items() if got != want],
    )
    return matched


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(f"The file {what}: {', '.join(names[:4])}{more}.")
