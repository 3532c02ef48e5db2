"""Colours of objects by GenEval's zero-shot classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fk_reward.benchmarks.geneval.judge import Detection
from fk_reward.benchmarks.geneval.prompts import COLORS
from fk_reward.rewards.inputs import group_by_size
from fk_reward.rewards.preprocessing import ImagePreprocessing, TorchvisionPreprocessing

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

CLIP = "openai/clip-vit-large-patch14"

BACKGROUND = "#999"
"""Grey that replaces everything but the object."""

# Those of GenEval's script.
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


def object_crops(image: Image.Image, detections: Sequence[Detection]) -> list[Image.Image]:
    """Cut objects out of an image, each on grey where its mask is false.

    Args:
        image: RGB.
        detections: of it; one without a mask keeps its surroundings within the box.

    Raises:
        ValueError: a mask has another size than the image.

    Example:
        >>> mask = torch.zeros(4, 4, dtype=torch.bool)
        >>> mask[1, 1] = True
        >>> (crop,) = object_crops(Image.new("RGB", (4, 4), "red"), [Detection((1, 1, 3, 2), 0.9, mask)])
        >>> crop.size, crop.getpixel((0, 0)), crop.getpixel((1, 0))
        ((2, 1), (255, 0, 0), (153, 153, 153))
    """
    blank = Image.new("RGB", image.size, BACKGROUND)
    crops = []
    for detection in detections:
        if detection.mask is not None and tuple(detection.mask.shape) != (image.height, image.width):
            raise ValueError(
                f"A mask of {tuple(detection.mask.shape)} does not fit an image of {(image.height, image.width)}."
            )
        mask = None if detection.mask is None else Image.fromarray(detection.mask.cpu().numpy())
        cut = image if mask is None else Image.composite(image, blank, mask)
        x0, y0, x1, y1 = (round(side) for side in detection.box)
        crops.append(cut.crop((x0, y0, x1, y1)))
    return crops


class CLIPColorClassifier:
    """Names the colours of objects by CLIP: the nearest of ten, each the mean direction of three sentences.

    As `color_classification` in GenEval's `evaluation/evaluate_images.py`, which has OpenCLIP's ViT-L-14 with OpenAI's
    weights, and `zero_shot_classifier` of CLIP_benchmark. As there, CLIP's preprocessing cuts the ends off a long crop.

    Args:
        model: put into evaluation mode and frozen, in place.
        tokenizer: its tokenizer.
        preprocessing: of its image tower.
        batch_size: objects at a time.

    Raises:
        ValueError: `batch_size` is below 1.

    Example:
        >>> color_of = CLIPColorClassifier.from_pretrained(CLIP, device="cuda")  # doctest: +SKIP
        >>> color_of(image, "cow", objects["cow"])  # doctest: +SKIP
        ['brown']
    """

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, *, preprocessing: ImagePreprocessing, batch_size: int = 16
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size should be at least 1, got {batch_size}.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self._directions: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = CLIP,
        *,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
        revision: str = "main",
    ) -> CLIPColorClassifier:
        """Load CLIP from the hub or a folder.

        Args:
            model: hub id or folder.
            device: of the model.
            torch_dtype: of the weights.
            batch_size: as for the class.
            revision: branch, tag or commit of the hub repository.

        Raises:
            OSError: files are missing.
            ValueError: the image processor does something that `ImagePreprocessing` does not.
        """
        from transformers import CLIPModel, CLIPTokenizer

        return cls(
            CLIPModel.from_pretrained(model, dtype=torch_dtype, revision=revision).to(device),
            CLIPTokenizer.from_pretrained(model, revision=revision),
            # GenEval's OpenCLIP cuts with torchvision, which begins an odd margin elsewhere than transformers.
            preprocessing=TorchvisionPreprocessing.from_pretrained(model, revision=revision),
            batch_size=batch_size,
        )

    @torch.no_grad()
    def __call__(self, image: Image.Image, class_name: str, detections: Sequence[Detection]) -> list[str]:
        """Name the colour of each object.

        Args:
            image: RGB.
            class_name: what the objects are.
            detections: the objects, all of that class.

        Returns:
            One of `COLORS` for each.
        """
        if not detections:
            return []
        # Crops of one size are preprocessed together; `argsort` puts the colours back in order.
        groups = group_by_size(object_crops(image, detections), keep_uint8=True)
        order = torch.tensor([index for group in groups for index in group.indices])
        pixels = torch.cat([self.preprocessing(group.images.to(self.model.device)) for group in groups])
        embeddings = torch.cat([self._embed(batch) for batch in pixels.split(self.batch_size)])
        nearest = (embeddings @ self._color_directions(class_name).T).argmax(dim=-1)
        return [COLORS[index] for index in nearest[order.argsort()].tolist()]

    def _embed(self, pixels: Tensor) -> Tensor:
        features = self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)).pooler_output
        return functional.normalize(features.float(), dim=-1)

    def _color_directions(self, class_name: str) -> Tensor:
        """(10, D) unit vectors; computed once for a class."""
        if class_name not in self._directions:
            sentences = [template.format(color=color, name=class_name) for color in COLORS for template in TEMPLATES]
            tokens = self.tokenizer(sentences, padding=True, return_tensors="pt").to(self.model.device)
            features = self.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
            # Normalised before the mean, so that all sentences count alike, and after it.
            units = functional.normalize(features.pooler_output.float(), dim=-1)
            means = units.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(dim=1)
            self._directions[class_name] = functional.normalize(means, dim=-1)
        return self._directions[class_name]
