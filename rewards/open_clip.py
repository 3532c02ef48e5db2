"""OpenCLIP's ViT-H-14 as transformers' CLIPModel: the names and shapes of the one turned into those of the other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fk_reward.rewards.weights import unwrapped_names

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

_VISION_HEAD_WIDTH = 80  # of ViT-H-14 alone, in OpenCLIP's model_configs/ViT-H-14.json
_TEXT_HEAD_WIDTH = 64

_TENSORS = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLOCK_TENSOR = re.compile(
    r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<module>.+)[._](?P<kind>weight|bias)"
)
_BLOCK_MODULES = {
    "ln_1": ["layer_norm1"],
    "ln_2": ["layer_norm2"],
    "attn.in_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.out_proj": ["self_attn.out_proj"],
    "mlp.c_fc": ["mlp.fc1"],
    "mlp.c_proj": ["mlp.fc2"],
}


def clip_from_open_clip(tensors: Mapping[str, Tensor]) -> CLIPModel:
    """Build a `CLIPModel` that computes what OpenCLIP's ViT-H-14 does; tensors must match one to one.

    Args:
        tensors: state dict of `open_clip.CLIP`. All sizes are read from it but the width of an attention head, 80 in
            the image tower and 64 in the text tower, which is ViT-H-14's among OpenCLIP's sizes.

    Returns:
        The model on the tensors' device, in their dtype; it shares memory with them.

    Raises:
        ValueError: when the tensors are not those of a ViT-H-14; it names the first that are unknown, absent or of an
            unfitting size.

    Example:
        >>> import torch
        >>> clip_from_open_clip({"cls_token": torch.zeros(1)})
        Traceback (most recent call last):
        ValueError: This is not an OpenCLIP ViT-H-14: it has cls_token.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPModel

    tensors = unwrapped_names(tensors, source="The state dict")
    converted = _convert(tensors)
    with init_empty_weights():  # load_state_dict assigns the tensors: nothing is initialised or copied
        model = CLIPModel(_config(tensors))
    if missing := sorted(model.state_dict().keys() - converted.keys()):
        raise ValueError(f"This is not a complete OpenCLIP ViT-H-14: nothing gives {', '.join(missing[:4])}.")
    try:
        model.load_state_dict(converted, assign=True)
    except RuntimeError as error:
        raise ValueError(f"This is not an OpenCLIP ViT-H-14: {error}") from error
    return model


def _convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted, unknown = {}, []
    for key, tensor in tensors.items():
        if key in _TENSORS:
            converted[_TENSORS[key]] = tensor
        elif key in _TRANSPOSED:
            converted[_TRANSPOSED[key]] = tensor.T.contiguous()  # OpenCLIP multiplies from the right: x @ projection
        elif part := _convert_block(key, tensor):
            converted |= part
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"This is not an OpenCLIP ViT-H-14: it has {', '.join(unknown[:4])}.")
    return converted


def _convert_block(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a transformer block, split where several are stacked in it; nothing for other tensors."""
    match = _BLOCK_TENSOR.fullmatch(key)
    if match is None or match["module"] not in _BLOCK_MODULES:
        return {}
    block = f"{'vision_model' if match['visual'] else 'text_model'}.encoder.layers.{match['layer']}"
    modules = _BLOCK_MODULES[match["module"]]
    parts = tensor.chunk(len(modules))
    return {f"{block}.{module}.{match['kind']}": part for module, part in zip(modules, parts, strict=True)}


def _config(tensors: Mapping[str, Tensor]) -> CLIPConfig:
    from transformers import CLIPConfig

    try:
        vision, text = _vision_sizes(tensors), _text_sizes(tensors)
        width = tensors["text_projection"].shape[1]
    except KeyError as error:
        raise ValueError(f"This is not a complete OpenCLIP ViT-H-14: it lacks {error}.") from error
    # OpenCLIP uses the exact GELU, unlike OpenAI's models ("quick_gelu"), which are CLIPConfig's default.
    both = {"projection_dim": width, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    return CLIPConfig(vision_config=vision | both, text_config=text | both, projection_dim=width)


def _vision_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    width, _, patch_size, _ = tensors["visual.conv1.weight"].shape
    num_patches = len(tensors["visual.positional_embedding"]) - 1
    sizes = {"patch_size": patch_size, "image_size": math.isqrt(num_patches) * patch_size}
    return sizes | _block_sizes(tensors, "visual.transformer", width=width, head_width=_VISION_HEAD_WIDTH)


def _text_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    vocab_size, width = tensors["token_embedding.weight"].shape
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": len(tensors["positional_embedding"])}
    special = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}  # the last of OpenCLIP's vocabulary
    return sizes | special | _block_sizes(tensors, "transformer", width=width, head_width=_TEXT_HEAD_WIDTH)


def _block_sizes(tensors: Mapping[str, Tensor], tower: str, *, width: int, head_width: int) -> dict[str, int]:
    if width % head_width:
        raise ValueError(f"This is not an OpenCLIP ViT-H-14: its {tower} is {width} wide, no multiple of {head_width}.")
    blocks = f"{tower}.resblocks."
    layers = {key.removeprefix(blocks).partition(".")[0] for key in tensors if key.startswith(blocks)}
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{blocks}0.mlp.c_fc.weight"]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // head_width,
    }
