"""ImageReward written down once more, for one picture and one prompt, on tensors with the names of `ImageReward.pt`.

Follows the published architecture: a vision transformer with layer norms before its layers, BERT with layer norms after
its layers and a cross-attention to the picture in each, five linear layers, a shift and a scale. Padding is masked by
adding -10000 to the attention scores.
"""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch.nn import functional

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


class Reference:
    """Callable on pixels (3, S, S), normalised, and token ids with their mask, each (L,); gives a number."""

    def __init__(self, state, *, head_size=64, eps=1e-6, activation=None, standardize=True):
        self.state, self.head_size, self.eps = state, head_size, eps
        self.activation, self.standardize = activation, standardize

    def __call__(self, pixels, ids, mask):
        fused = self.read(ids, mask, self.look(pixels))[0]
        for index in (0, 2, 4, 6, 7):
            fused = self.linear(f"mlp.layers.{index}", fused)
            fused = fused if self.activation is None or index == 7 else self.activation(fused)
        return ((fused - 0.16717362830052426) / 1.0333394966054072 if self.standardize else fused).item()

    def look(self, pixels):
        name = "blip.visual_encoder"
        kernel = self.state[f"{name}.patch_embed.proj.weight"]
        patches = functional.conv2d(
            pixels[None], kernel, self.state[f"{name}.patch_embed.proj.bias"], stride=kernel.shape[-1]
        )
        x = (
            torch.cat([self.state[f"{name}.cls_token"][0], patches[0].flatten(1).T])
            + self.state[f"{name}.pos_embed"][0]
        )
        for layer in range(self.count(f"{name}.blocks.")):
            block = f"{name}.blocks.{layer}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, self.eps)).chunk(3, dim=1)
            x = x + self.linear(f"{block}.attn.proj", self.attend(q, k, v))
            hidden = functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, self.eps)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.norm(f"{name}.norm", x, self.eps)

    def read(self, ids, mask, picture):
        name = "blip.text_encoder"
        x = self.state[f"{name}.embeddings.word_embeddings.weight"][ids]
        x = x + self.state[f"{name}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{name}.embeddings.LayerNorm", x, 1e-12)
        for index in range(self.count(f"{name}.encoder.layer.")):
            layer = f"{name}.encoder.layer.{index}"
            x = self.bert_attention(f"{layer}.attention", x, x, (1 - mask) * -10000.0)
            x = self.bert_attention(f"{layer}.crossattention", x, picture, 0.0)
            hidden = functional.gelu(self.linear(f"{layer}.intermediate.dense", x))
            x = self.norm(f"{layer}.output.LayerNorm", self.linear(f"{layer}.output.dense", hidden) + x, 1e-12)
        return x

    def bert_attention(self, name, x, source, bias):
        q = self.linear(f"{name}.self.query", x)
        k, v = self.linear(f"{name}.self.key", source), self.linear(f"{name}.self.value", source)
        attended = self.linear(f"{name}.output.dense", self.attend(q, k, v, bias))
        return self.norm(f"{name}.output.LayerNorm", attended + x, 1e-12)

    def attend(self, q, k, v, bias=0.0):
        heads = []
        for qh, kh, vh in zip(*(part.split(self.head_size, dim=1) for part in (q, k, v)), strict=True):
            heads.append((qh @ kh.T / math.sqrt(self.head_size) + bias).softmax(dim=-1) @ vh)
        return torch.cat(heads, dim=1)

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x, eps):
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def count(self, prefix):
        return len({key[len(prefix) :].split(".")[0] for key in self.state if key.startswith(prefix)})


def to_pil(image):
    """(3, H, W) in [0, 1] as 8 bits."""
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def pil_pixels(image, size):
    """torchvision's Resize, CenterCrop and ToTensor, by PIL: (3, size, size) in [0, 1]."""
    width, height = image.size
    longer = int(size * max(width, height) / min(width, height))
    image = image.resize((size, longer) if width <= height else (longer, size), Image.Resampling.BICUBIC)
    left, top = (int(round((side - size) / 2.0)) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return raw.view(size, size, 3).permute(2, 0, 1) / 255
