"""A tiny ImageReward with random weights in the layout that its authors publish, and BERT's tokenizer for it."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from torch import Tensor

IMAGE_SIZE, PATCH_SIZE, HEAD_SIZE = 32, 8, 64
VISION_WIDTH, VISION_LAYERS = 192, 2
TEXT_WIDTH, TEXT_LAYERS, MAX_POSITIONS = 128, 2, 48
MLP_WIDTHS = (TEXT_WIDTH, 24, 20, 12, 8, 1)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("red", "blue", "circle", "square", "photo", "star", "green", "cross")
NUM_TOKENS = len(SPECIAL) + len(WORDS) + 2 * len(string.ascii_lowercase) + 2
"""With BLIP's [DEC] and [ENC], which the official code adds to BERT's vocabulary."""


def write_bert_tokenizer(folder: Path) -> Path:
    """Write the files of bert-base-uncased in small: a vocabulary of few words and letters, without BLIP's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase
    tokens = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def random_state_dict(seed: int = 0, *, mlp_indices=(0, 2, 4, 6, 7), max_positions=MAX_POSITIONS) -> dict[str, Tensor]:
    """Tensors with the names of `ImageReward.pt`, those that it does not use among them."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * 1.2 * inputs**-0.5
        state[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.2

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    _add_vision(state, linear, norm, generator)
    _add_text(state, linear, norm, generator, max_positions)
    linear("blip.vision_proj", 16, VISION_WIDTH)
    linear("blip.text_proj", 16, TEXT_WIDTH)
    for index, inputs, outputs in zip(mlp_indices, MLP_WIDTHS[:-1], MLP_WIDTHS[1:], strict=True):
        linear(f"mlp.layers.{index}", outputs, inputs)
    return state


def write_imagereward(folder: Path) -> Path:
    """Write `ImageReward.pt` and a tokenizer (folder `tokenizer`); return the folder."""
    write_bert_tokenizer(folder / "tokenizer")
    torch.save(random_state_dict(), folder / "ImageReward.pt")
    return folder


def write_cyclereward(path: Path) -> Path:
    """Write a file in the layout of `CycleReward-Combo.pth`."""
    torch.save(random_state_dict(3, mlp_indices=(0, 2, 4, 6, 8), max_positions=128), path)
    return path


def _add_vision(state, linear, norm, generator) -> None:
    name, width = "blip.visual_encoder", VISION_WIDTH
    state[f"{name}.cls_token"] = torch.randn(1, 1, width, generator=generator)
    num_positions = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
    state[f"{name}.pos_embed"] = 0.3 * torch.randn(1, num_positions, width, generator=generator)
    kernel = torch.randn(width, 3, PATCH_SIZE, PATCH_SIZE, generator=generator)
    state[f"{name}.patch_embed.proj.weight"] = 2 * kernel / PATCH_SIZE
    state[f"{name}.patch_embed.proj.bias"] = 0.2 * torch.randn(width, generator=generator)
    for block in (f"{name}.blocks.{layer}" for layer in range(VISION_LAYERS)):
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 2 * width, width)
        linear(f"{block}.mlp.fc2", width, 2 * width)
    norm(f"{name}.norm", width)


def _add_text(state, linear, norm, generator, max_positions) -> None:
    name, width = "blip.text_encoder", TEXT_WIDTH
    state[f"{name}.embeddings.position_ids"] = torch.arange(max_positions)[None]
    state[f"{name}.embeddings.word_embeddings.weight"] = torch.randn(NUM_TOKENS, width, generator=generator)
    state[f"{name}.embeddings.position_embeddings.weight"] = 0.3 * torch.randn(
        max_positions, width, generator=generator
    )
    norm(f"{name}.embeddings.LayerNorm", width)
    for layer in (f"{name}.encoder.layer.{index}" for index in range(TEXT_LAYERS)):
        for attention, source in (("attention", width), ("crossattention", VISION_WIDTH)):
            linear(f"{layer}.{attention}.self.query", width, width)
            linear(f"{layer}.{attention}.self.key", width, source)
            linear(f"{layer}.{attention}.self.value", width, source)
            linear(f"{layer}.{attention}.output.dense", width, width)
            norm(f"{layer}.{attention}.output.LayerNorm", width)
        linear(f"{layer}.intermediate.dense", 2 * width, width)
        linear(f"{layer}.output.dense", width, 2 * width)
        norm(f"{layer}.output.LayerNorm", width)
