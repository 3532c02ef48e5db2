"""PIL pictures score as through the official processors, which resize in 8 bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil, Qwen2VLImageProcessorPil

from tests.rewards.llava_reward.test_phi3_vision_images import official_crops

TOLERANCE = 0.1
"""Of the standard deviation of the scores of different pictures: what is left of rounding to 8 bits in resizing."""


def phi_pixels(backbone, folder, pictures):
    transform = backbone.hd_transform
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    size = {"num_crops": transform.num_crops, "size": transform.crop_size}
    return torch.cat([(official_crops(np.array(picture), **size) - mean) / std for picture in pictures])


def qwen_pixels(backbone, folder, pictures):
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])


def llava_pixels(backbone, folder, pictures):
    processor = LlavaNextImageProcessorPil.from_pretrained(folder)
    return torch.cat([processor(picture, return_tensors="pt")["pixel_values"][0] for picture in pictures])


PIXELS = {"phi3_v": phi_pixels, "qwen2_5_vl": qwen_pixels, "llava_next": llava_pixels}


def photographs(sizes):
    """Smooth pictures with some grain, as photographs are."""
    generator = np.random.default_rng(0)
    for height, width in sizes:
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        yield Image.fromarray((smooth + generator.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8))


def test_scores_agree_with_the_official_processors(tiny, monkeypatch):
    pictures = list(photographs([(64, 64), (50, 90), (96, 40), (70, 71)]))
    reward = tiny.load()
    ours = reward(pictures, "a photo of a star")
    backbone = reward.model.backbone
    prepare, seen = backbone.prepare, []

    def through_pil(images, prompts):
        inputs = prepare(images, prompts)
        batch = pictures[len(seen) : len(seen) + len(images)]
        seen.extend(batch)
        pixel_values = PIXELS[tiny.model_type](backbone, tiny.backbone, batch)
        assert pixel_values.shape == inputs.pixel_values.shape
        return dataclasses.replace(inputs, pixel_values=pixel_values)

    monkeypatch.setattr(backbone, "prepare", through_pil)
    theirs = torch.cat([reward(picture, "a photo of a star") for picture in pictures])
    assert len(seen) == len(pictures)
    assert (ours - theirs).abs().max() < TOLERANCE * ours.std()
    assert (ours - theirs).abs().max() > 0  # it was another path
