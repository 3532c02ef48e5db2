"""ImageReward's network on transformers' BLIP, and its files: the authors' `ImageReward.pt`, or a folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fk_reward.documents import parse_json
from fk_reward.models import check_source, resolve_model
from fk_reward.rewards.blip import fused_states
from fk_reward.rewards.float32_layers import Float32Sequential
from fk_reward.rewards.weights import read_state_dict, unwrapped_names

OFFICIAL_FILE = "ImageReward.pt"
OFFICIAL_TOKENIZER = "google-bert/bert-base-uncased"
CONFIG_FILE = "imagereward.json"
TENSORS_FILE = "imagereward.safetensors"

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

MLP_INDICES = (0, 2, 4, 6, 7)
"""Places of the linear layers in the official MLP; dropouts are between the first four."""

GELU_MLP_INDICES = (0, 2, 4, 6, 8)
"""The same in CycleReward's MLP, which has a GELU between all of them."""

_TEXT, _VISION = "blip.text_encoder", "blip.visual_encoder"
_SIZES: dict[str, tuple[str, int]] = {
    "patch_size": (f"{_VISION}.patch_embed.proj.weight", 2),
    "vision_width": (f"{_VISION}.cls_token", 2),
    "vision_mlp_width": (f"{_VISION}.blocks.0.mlp.fc1.weight", 0),
    "vocab_size": (f"{_TEXT}.embeddings.word_embeddings.weight", 0),
    "max_positions": (f"{_TEXT}.embeddings.position_embeddings.weight", 0),
    "text_width": (f"{_TEXT}.embeddings.word_embeddings.weight", 1),
    "text_mlp_width": (f"{_TEXT}.encoder.layer.0.intermediate.dense.weight", 0),
}
"""Field -> the tensor that shows it, and along which dimension."""


@dataclass(frozen=True, kw_only=True)
class ImageRewardConfig:
    """What the tensors do not say. The defaults are those of the authors' code.

    Attributes:
        head_size: width of the attention heads of both towers; 64 in every BLIP.
        max_tokens: number of tokens that are read of a prompt, special ones included.
        mean: mean of the raw scores over the authors' data.
        std: their standard deviation; a score is (raw - mean) / std.

    Raises:
        ValueError: for a number that is not positive; `mean` may be any.

    Example:
        >>> ImageRewardConfig(head_size=32, max_tokens=16).mean
        0.16717362830052426
    """

    head_size: int = 64
    max_tokens: int = 35
    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072

    def __post_init__(self) -> None:
        for field in ("head_size", "max_tokens", "std"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}.")

    @classmethod
    def read(cls, path: Path) -> ImageRewardConfig:
        """Read the JSON file; an unknown or missing key raises a ValueError."""
        settings: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"), path)
        names = {field.name for field in dataclasses.fields(cls)}
        if set(settings) != names:
            raise ValueError(f"{path} must have the keys {sorted(names)}, got {sorted(settings)}.")
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class ImageRewardSizes:
    """Sizes of BLIP's two towers and of the MLP on top.

    Attributes:
        image_size: side of the square image, pixels.
        patch_size: side of a patch, pixels.
        vision_width: width of the vision tower.
        vision_mlp_width: width inside its feed-forward layers.
        vision_layers: number of its layers.
        vocab_size: number of tokens.
        max_positions: number of positions of the text encoder.
        text_width: width of the text encoder.
        text_mlp_width: width inside its feed-forward layers.
        text_layers: number of its layers.
        mlp_widths: inputs of the MLP's five layers.
        mlp_gelu: whether there is a GELU between them (CycleReward), or nothing (ImageReward).

    Example:
        >>> ImageRewardSizes.official().mlp_widths
        (768, 1024, 128, 64, 16)
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_mlp_width: int
    vision_layers: int
    vocab_size: int
    max_positions: int
    text_width: int
    text_mlp_width: int
    text_layers: int
    mlp_widths: tuple[int, ...]
    mlp_gelu: bool = False

    @classmethod
    def official(cls) -> ImageRewardSizes:
        """Those of `ImageReward.pt`: ViT-L/16 on 224 pixels, BERT-base, as its authors' code builds them."""
        vision: dict[str, Any] = {"patch_size": 16, "vision_width": 1024, "vision_mlp_width": 4096, "vision_layers": 24}
        text: dict[str, Any] = {"max_positions": 512, "text_width": 768, "text_mlp_width": 3072, "text_layers": 12}
        return cls(image_size=224, vocab_size=30524, mlp_widths=(768, 1024, 128, 64, 16), **vision, **text)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> ImageRewardSizes:
        """Read the sizes off tensors with the official names.

        Raises:
            ValueError: when a tensor that shows a size is missing, or the positions are not those of a square image.
        """
        sizes = {field: _size(state_dict, *place) for field, place in _SIZES.items()}
        num_patches = _size(state_dict, f"{_VISION}.pos_embed", 1) - 1
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise ValueError(
                f"{_VISION}.pos_embed has positions for {num_patches} patches, which do not form a square."
            )
        gelu = f"mlp.layers.{GELU_MLP_INDICES[-1]}.weight" in state_dict
        indices = GELU_MLP_INDICES if gelu else MLP_INDICES
        return cls(
            image_size=side * sizes["patch_size"],
            vision_layers=_count(state_dict, rf"{_VISION}\.blocks\.(\d+)\..*"),
            text_layers=_count(state_dict, rf"{_TEXT}\.encoder\.layer\.(\d+)\..*"),
            mlp_widths=tuple(_size(state_dict, f"mlp.layers.{index}.weight", 1) for index in indices),
            mlp_gelu=gelu,
            **sizes,
        )

    def check_head_size(self, head_size: int) -> None:
        """Raise a ValueError when attention heads of that size do not fill both towers."""
        widths = {field: getattr(self, field) for field in ("vision_width", "text_width")}
        if head_size < 1 or any(width % head_size for width in widths.values()):
            raise ValueError(f"head_size must divide the widths of both towers, {widths}, got {head_size}.")


def _size(state_dict: Mapping[str, Tensor], name: str, dimension: int) -> int:
    tensor = state_dict.get(name)
    if tensor is None or tensor.ndim <= dimension:
        found = "it is missing" if tensor is None else f"its shape is {tuple(tensor.shape)}"
        raise ValueError(f"Not the weights of an ImageReward: a size is read from {name}, but {found}.")
    return tensor.shape[dimension]


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state_dict if (match := re.fullmatch(pattern, name))})


class ImageRewardModel(nn.Module):
    """Image and prompt to one number, before it is standardised; weights are random until loaded.

    The network of Xu et al. 2023 (arXiv 2304.05977) as `ImageReward/ImageReward.py` of github.com/THUDM/ImageReward
    has it: layer norms of the vision tower with eps 1e-6, those of the text encoder with 1e-12, and an MLP without
    activations. CycleReward (Bahng et al. 2025, arXiv 2506.02095) has the same, with a GELU between the layers.

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
        self.mlp = make_mlp(sizes.mlp_widths, gelu=sizes.mlp_gelu)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score normalised images (B, 3, S, S) with prompts of tokens (B, L); returns (B,) in float32.

        B: number of images, S: their side, L: length of the padded prompts.
        """
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.mlp(fused_states(self.vision, self.text, pixel_values, tokens)).squeeze(1)


def make_mlp(widths: tuple[int, ...], *, gelu: bool = False) -> Float32Sequential:
    """Five linear layers with the official dropouts between the first four, and no activation.

    Args:
        widths: inputs of the layers.
        gelu: put a GELU between all of them instead, as CycleReward does.

    Example:
        >>> make_mlp((768, 1024, 128, 64, 16))[7]
        Linear(in_features=16, out_features=1, bias=True)
        >>> make_mlp((768, 1024, 128, 64, 16), gelu=True)[7]
        GELU(approximate='none')
    """
    # No activations, as in the authors' code: theirs are commented out, and the published weights rely on it.
    first, second, third, fourth, fifth = (
        nn.Linear(inputs, outputs) for inputs, outputs in zip(widths, (*widths[1:], 1), strict=True)
    )
    dropouts = nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)
    layers: tuple[nn.Module, ...] = (first, dropouts[0], second, dropouts[1], third, dropouts[2], fourth, fifth)
    if gelu:
        layers = (first, nn.GELU(), second, nn.GELU(), third, nn.GELU(), fourth, nn.GELU(), fifth)
    return Float32Sequential(*layers).float()  # the default dtype may be narrower


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


class ImageRewardFiles(NamedTuple):
    """A file of tensors with the official names, what it does not say, and folder or hub id of the tokenizer."""

    tensors: Path
    config: ImageRewardConfig
    tokenizer: str


def find_files(weights: str | os.PathLike[str], *, revision: str = "main") -> ImageRewardFiles:
    """Find the files of an ImageReward.

    Args:
        weights: the file `ImageReward.pt` (or its tensors as safetensors), a folder with it, a folder in our format,
            the name of an embedded model, or a hub id, from which `ImageReward.pt` is taken.
        revision: branch, tag or commit of a hub repository.

    Raises:
        FileNotFoundError: when there is no such file, or neither kind of file in the folder.
        ValueError: when the configuration of a folder cannot be read.
    """
    path = Path(resolve_model(weights))
    if path.suffix in (".pt", ".pth", ".safetensors") and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of ImageReward.")
        return ImageRewardFiles(path, ImageRewardConfig(), OFFICIAL_TOKENIZER)
    check_source(path, "ImageReward")
    if not path.is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(path.as_posix(), OFFICIAL_FILE, revision=revision))
        return ImageRewardFiles(file, ImageRewardConfig(), OFFICIAL_TOKENIZER)
    if (path / CONFIG_FILE).is_file():
        return ImageRewardFiles(path / TENSORS_FILE, ImageRewardConfig.read(path / CONFIG_FILE), str(path))
    if (path / OFFICIAL_FILE).is_file():
        return ImageRewardFiles(path / OFFICIAL_FILE, ImageRewardConfig(), OFFICIAL_TOKENIZER)
    raise FileNotFoundError(f"{path} holds no ImageReward: expected {OFFICIAL_FILE} or {CONFIG_FILE} in it.")


def read_model(
    path: Path, *, head_size: int = 64, dtype: torch.dtype = torch.float32, gelu: bool = False
) -> ImageRewardModel:
    """Build the network that a file of tensors holds; its sizes are read from them.

    Args:
        path: `ImageReward.pt`, or the same tensors as safetensors. Pickles are read with `weights_only=True`.
        head_size: width of the attention heads, which no tensor shows.
        dtype: of the weights, whatever the file has; the head's have at least 32 bits.
        gelu: whether it should be a CycleReward's, whose MLP has activations.

    Raises:
        ValueError: when the file is damaged, or its tensors are not exactly those of an ImageReward (CycleReward).
    """
    from accelerate import init_empty_weights

    tensors = _read_tensors(path)
    try:
        sizes = ImageRewardSizes.from_state_dict(tensors)
        if sizes.mlp_gelu != gelu:
            raise ValueError(f"The MLP is that of {'a CycleReward' if sizes.mlp_gelu else 'an ImageReward'}.")
        with init_empty_weights():
            model = ImageRewardModel(sizes, head_size=head_size)
        matched = match_tensors(tensors, model.state_dict())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    in_head = torch.promote_types(dtype, torch.float32)
    converted = {n: tensor.to(in_head if n.startswith("mlp.") else dtype) for n, tensor in matched.items()}
    model.load_state_dict(converted, assign=True)
    return model


def write_model(folder: Path, model: ImageRewardModel, config: ImageRewardConfig) -> None:
    """Write tensors, with the official names and in their present dtype, and configuration; the tokenizer is apart."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {official_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    text = json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_state_dict(path)
    try:
        return unwrapped_names(load_file(path), source=path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


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
