"""OpenCLIP's ViT-H-14 written out plainly: parameters named as in its state dict, the forward pass as published.

The architecture is that of Radford et al. 2021 (arXiv 2103.00020) as github.com/mlfoundations/open_clip has it; the
attention is torch's `nn.MultiheadAttention`, as there.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

FULL = {"vocab_size": 49408, "context": 77, "text": (1024, 24), "vision": (1280, 32), "image_size": 224, "embed": 1024}
TINY = {"vocab_size": 76, "context": 32, "text": (128, 2), "vision": (160, 3), "image_size": 56, "embed": 128}
PATCH = 14


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTower(nn.Module):
    def __init__(self, width: int, layers: int, image_size: int, embed: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((image_size // PATCH) ** 2 + 1, width))
        self.conv1 = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, width // 80)
        self.proj = nn.Parameter(torch.empty(width, embed))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """Both towers; the text tower's parameters are at the top level."""

    def __init__(self, *, vocab_size, context, text, vision, image_size, embed) -> None:
        super().__init__()
        self.visual = VisionTower(*vision, image_size, embed)
        width, layers = text
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = Transformer(width, layers, width // 64)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed))
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))

    def encode_text(self, ids: Tensor) -> Tensor:
        """State at the largest id, the end of the text; ids (B, context) are padded with 0."""
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding, mask))
        return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Cosines of all pairs, (B, B)."""
        image, text = (functional.normalize(x, dim=-1) for x in (self.visual(pixels), self.encode_text(ids)))
        return image @ text.T


def tiny_open_clip(*, seed: int = 0) -> OpenClip:
    """Random weights, large enough that embeddings differ."""
    model = OpenClip(**TINY).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.12 * torch.randn(parameter.shape, generator=generator))
    return model


def write_hps(path: Path, *, seed: int = 0) -> Path:
    """Write a checkpoint in the layout of HPS_v2.1_compressed.pt, for the vocabulary of the tiny CLIP's tokenizer."""
    torch.save({"state_dict": tiny_open_clip(seed=seed).state_dict()}, path)
    return path
