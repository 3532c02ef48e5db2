"""Trains `shapes-clip`, a small CLIP, on images and captions with hard negatives in each batch."""

from __future__ import annotations

from pathlib import Path

import cyclopts
import torch
from fit import FitConfig, fit, save_model
from prompt_sides import HardGroups
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from train_unet import make_text_config, tokenize_all
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip import CLIPImageProcessorPil

from fk_reward.shapes import BACKGROUND, COLORS, SHAPES, all_prompts

NUM_CLASSES = len(SHAPES) * len(COLORS) + 1
EMPTY = NUM_CLASSES - 1
UNKNOWN = -100
"""Class of the background, and of patches that the loss ignores."""


def shape_by_color() -> Tensor:
    """Which shape a prompt says a colour has: `(prompts + 1, colours)`, -1 where it does not say; last row -1."""
    names = tuple(COLORS)
    table = torch.full((len(all_prompts()) + 1, len(names)), -1)
    for row, prompt in enumerate(all_prompts()):
        for spec in prompt.objects:
            if spec.color:
                table[row, names.index(spec.color)] = SHAPES.index(spec.shape)
            elif len({other.shape for other in prompt.objects}) == 1:
                table[row] = SHAPES.index(spec.shape)
    return table


def patch_classes(images: Tensor, true_prompts: Tensor, table: Tensor, *, patch_size: int = 8) -> Tensor:
    """Class of each patch: `shape * colours + colour`, `EMPTY`, or `UNKNOWN` at edges and where no caption tells.

    Args:
        images: `(B, 3, H, W)` uint8, as rendered.
        true_prompts: `(B, N)` indices of the captions that are true of an image, padded with -1.
        table: What `shape_by_color` returns.
        patch_size: Side of a patch in pixels.

    Returns:
        `(B, patches)`, in reading order.
    """
    palette = torch.tensor([*COLORS.values(), BACKGROUND], dtype=torch.float32, device=images.device)
    nearest = torch.cdist(images.float().flatten(2).mT, palette).argmin(-1).view(len(images), *images.shape[2:])
    shares = F.avg_pool2d(F.one_hot(nearest, len(palette)).permute(0, 3, 1, 2).float(), patch_size).flatten(2)
    empty, color = shares[:, -1], shares[:, :-1].argmax(1)
    shapes = table[true_prompts.int()].amax(1)
    shape = shapes.gather(1, color)
    known = (empty < 0.6) & (shape >= 0)
    classes = torch.where(known, shape * len(COLORS) + color, UNKNOWN)
    return classes.masked_fill(empty == 1, EMPTY)


GROUP_SIZE = 4


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The two towers, untrained."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=64,
    )
    text = make_text_config(tokenizer)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    return CLIPModel(config)


def make_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """Images are used at 64 x 64, normalised as CLIP does."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def blurred(images: Tensor, sigmas: Tensor, radius: int = 6) -> Tensor:
    """Gaussian blur, one standard deviation (pixels) an image."""
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, dim=0)
    flat = F.pad(images.flatten(0, 1)[None], (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernels[:, None, None, :], groups=len(kernels))
    return F.conv2d(flat, kernels[:, None, :, None], groups=len(kernels)).view_as(images)


def degraded(images: Tensor) -> Tensor:
    """Blur, noise and loss of contrast, as in images decoded before sampling has ended; a third stays as it is."""
    batch, device = len(images), images.device
    strength = (torch.rand(batch, device=device) * 1.5 - 0.5).clamp(min=0.0)
    blur = blurred(images, 0.1 + 4.0 * strength * torch.rand(batch, device=device))
    contrast = (1 - 0.5 * strength * torch.rand(batch, device=device))[:, None, None, None]
    mean = images.mean((2, 3), keepdim=True)
    noise = (0.15 * strength * torch.rand(batch, device=device))[:, None, None, None] * torch.randn_like(images)
    return (mean + contrast * (blur - mean) + noise).clamp(0.0, 1.0)


class ContrastiveObjective(nn.Module):
    """CLIP's symmetric cross-entropy, and that of naming what each patch shows (see `patch_classes`).

    Captions that are true of another image of the batch are no negatives for it.
    """

    def __init__(self, clip: CLIPModel, processor: CLIPProcessor, patch_weight: float = 1.0) -> None:
        super().__init__()
        self.clip, self.patch_weight = clip, patch_weight
        self.patch_head = nn.Linear(clip.config.vision_config.hidden_size, NUM_CLASSES)
        self.register_buffer("table", shape_by_color(), persistent=False)
        self.register_buffer("tokens", tokenize_all(processor.tokenizer), persistent=False)
        self.register_buffer(
            "mean", torch.tensor(processor.image_processor.image_mean)[:, None, None], persistent=False
        )
        self.register_buffer("std", torch.tensor(processor.image_processor.image_std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, prompts: Tensor, true_prompts: Tensor) -> dict[str, Tensor]:
        """Contrasts `(B, 3, 64, 64)` uint8 images with `(B,)` captions, given `(B, 8)` true ones an image."""
        pixels = (degraded(images / 255) - self.mean) / self.std
        output = self.clip(input_ids=self.tokens[prompts.int()], pixel_values=pixels)
        logits = output.logits_per_image.masked_fill(self.false_negatives(true_prompts, prompts), -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if self.patch_weight == 0:
            return {"loss": contrast}
        named = self.patch_head(output.vision_model_output.last_hidden_state[:, 1:])
        classes = patch_classes(images, true_prompts, self.table)
        naming = F.cross_entropy(named.flatten(0, 1), classes.flatten(), ignore_index=UNKNOWN)
        return {"loss": contrast + self.patch_weight * naming}

    @staticmethod
    def false_negatives(true_prompts: Tensor, prompts: Tensor) -> Tensor:
        """Which captions are true of which other images: `(image, caption)` bool, False on the diagonal."""
        also_true = (true_prompts[:, :, None] == prompts).any(dim=1)
        return also_true.fill_diagonal_(False)


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    tokenizer: Path = Path("runs/tokenizer"),
    scenes: Path = Path("runs/scenes.safetensors"),
    start_from: Path | None = None,
    output_dir: Path = Path("runs/clip"),
    max_steps: int = 800,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    patch_weight: float = 1.0,
    seed: int = 0,
    save_steps: int = 100,
    resume: bool = False,
) -> None:
    """Trains on the scenes that `make_scenes.py` wrote and saves the model in `shapes-clip`."""
    torch.manual_seed(seed)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    clip, processor = make_clip(words), make_processor(words)
    groups = batch_size // GROUP_SIZE
    dataset = HardGroups(load_file(scenes), group_size=GROUP_SIZE, length=1_000_000, seed=seed)
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=groups,
        learning_rate=learning_rate,
        weight_decay=0.05,
        seed=seed,
        ema_decay=0.998,
        save_steps=save_steps,
        resume=resume,
    )
    objective = ContrastiveObjective(clip, processor, patch_weight)
    if start_from is not None:
        objective.load_state_dict(load_file(start_from / "model.safetensors"), strict=False)
    if fit(objective, dataset, config):
        save_model(clip, output_dir / "shapes-clip")
        processor.save_pretrained(output_dir / "shapes-clip")


if __name__ == "__main__":
    cyclopts.run(main)
