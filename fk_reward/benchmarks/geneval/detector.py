"""Finds the objects of COCO in pictures: transformers' Mask2Former in place of mmdetection's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from fk_reward.benchmarks.geneval.detection import THRESHOLD, Detection
from fk_reward.benchmarks.geneval.frame import LONGER_SIDE, SHORTER_SIDE, Frame
from fk_reward.benchmarks.geneval.instances import find_instances
from fk_reward.benchmarks.geneval.object_names import OBJECT_NAMES
from fk_reward.rewards.inputs import group_by_size
from fk_reward.rewards.preprocessing import ImagePreprocessing

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
"""Mask2Former with a Swin-S backbone, trained on COCO's instances."""


class Mask2FormerDetector:
    """Mask2Former, from pictures to the detections of each class.

    GenEval's own script runs mmdetection's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`. The default here is the
    same architecture with the weights of its authors, so scores differ a little between the two. Pictures are resized
    and masks are read as by mmdetection (`Frame`, `find_instances`), not as the file of the image processor says
    (384 x 384 for the masks, and in some repositories for the pictures): only mean and standard deviation come from it.

    Args:
        model: put into evaluation mode and frozen, in place.
        preprocessing: normalisation and filter of the resizing; its sizes are not used.
        batch_size: pictures at a time; only pictures of one size go together.
        min_score: objects of this score or less are left out.
        shorter_side: as for `Frame.of`.
        longer_side: as for `Frame.of`.

    Raises:
        ValueError: the classes are not those of COCO, in COCO's order, or `batch_size` is below 1.

    Example:
        >>> detector = Mask2FormerDetector.from_pretrained(DETECTOR, device="cuda")  # doctest: +SKIP
        >>> (objects,) = detector([picture])  # doctest: +SKIP
        >>> [cow.box for cow in objects["cow"]]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        preprocessing: ImagePreprocessing,
        *,
        batch_size: int = 8,
        min_score: float = THRESHOLD,
        shorter_side: int = SHORTER_SIDE,
        longer_side: int = LONGER_SIDE,
    ) -> None:
        _check_classes([model.config.id2label[index] for index in range(model.config.num_labels)])
        if batch_size < 1:
            raise ValueError(f"batch_size should be at least 1, got {batch_size}.")
        self.model = model.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.min_score = min_score
        self.shorter_side, self.longer_side = shorter_side, longer_side

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = DETECTOR,
        *,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
        revision: str = "main",
    ) -> Mask2FormerDetector:
        """Load the model and the settings of its image processor from the hub or a folder.

        Args:
            model: hub id or folder.
            device: of the model.
            torch_dtype: of the weights.
            batch_size: as for the class.
            revision: branch, tag or commit of the hub repository.

        Raises:
            OSError: files are missing.
            ValueError: as the class; or the image processor does something that `ImagePreprocessing` does not.
        """
        from transformers import ImageProcessingMixin, Mask2FormerForUniversalSegmentation

        config, _ = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)
        return cls(
            Mask2FormerForUniversalSegmentation.from_pretrained(model, dtype=torch_dtype, revision=revision).to(device),
            ImagePreprocessing.from_config({**config, "do_resize": False, "do_center_crop": False}),
            batch_size=batch_size,
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, list[Detection]]]:
        """Find the objects of each picture.

        Args:
            images: of any sizes.

        Returns:
            For each picture class -> detections, in no particular order; classes without one are missing.
        """
        found: list[dict[str, list[Detection]]] = [{} for _ in images]
        batches = [batch for group in group_by_size(list(images)) for batch in group.split(self.batch_size)]
        for batch in batches:
            for index, instances in zip(batch.indices, self._detect(batch.images), strict=True):
                for label, detection in instances:
                    found[index].setdefault(OBJECT_NAMES[label], []).append(detection)
        return found

    @torch.no_grad()
    def _detect(self, images: Tensor) -> list[list[tuple[int, Detection]]]:
        """Labels and detections of pictures (B, 3, H, W) in [0, 1]."""
        height, width = images.shape[-2:]
        frame = Frame.of((height, width), shorter_side=self.shorter_side, longer_side=self.longer_side)
        inputs = dataclasses.replace(self.preprocessing, size=frame.resized)(images.to(self.model.device))
        output = self.model(pixel_values=frame.pad(inputs).to(self.model.dtype))
        pairs = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        return [find_instances(classes, masks, frame, min_score=self.min_score) for classes, masks in pairs]


def _check_classes(names: Sequence[str]) -> None:
    """COCO says "mouse" where GenEval says "computer mouse"; anything else must be equal."""
    if len(names) != len(OBJECT_NAMES):
        raise ValueError(f"The detector should know the {len(OBJECT_NAMES)} classes of COCO, it has {len(names)}.")
    for index, (name, ours) in enumerate(zip(names, OBJECT_NAMES, strict=True)):
        if not f" {ours}".endswith(f" {name}"):
            raise ValueError(f"Class {index} of the detector should be COCO's {ours!r}, it is {name!r}.")
