"""Find the objects of COCO in images: transformers' Mask2Former instead of mmdetection's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fk_reward.benchmarks.geneval.judge import THRESHOLD, Box, Detection
from fk_reward.benchmarks.geneval.prompts import OBJECT_NAMES
from fk_reward.rewards.inputs import group_by_size
from fk_reward.rewards.preprocessing import ImagePreprocessing

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation


SHORTER_SIDE = 800
LONGER_SIDE = 1333
"""The shorter side becomes 800 pixels, unless the longer one would exceed 1333."""

DIVISOR = 32
"""Padded at the right and at the bottom to a multiple of this, the coarsest stride of the backbone."""


@dataclass(frozen=True)
class Frame:
    """Sizes (height, width) on the way of an image through the detector.

    Those of the test settings of mmdetection's `configs/mask2former`, which GenEval judges with. An image is resized as
    by mmcv, that is by OpenCV: bilinearly without antialias, and rounded to 8 bits.

    Attributes:
        image: of the image.
        resized: what it is resized to.

    Example:
        >>> frame = Frame.of((512, 1024))
        >>> frame.resized, frame.padded
        ((667, 1333), (672, 1344))
    """

    image: tuple[int, int]
    resized: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], *, shorter_side: int = SHORTER_SIDE, longer_side: int = LONGER_SIDE) -> Frame:
        """The frame of an image of this height and width.

        Args:
            image: height and width.
            shorter_side: what the shorter side becomes, in pixels,
            longer_side: unless the longer one would then exceed this.

        Example:
            >>> Frame.of((512, 512)).resized
            (800, 800)
        """
        height, width = image
        scale = min(shorter_side / min(image), longer_side / max(image))
        # Halves are rounded up, as by mmcv; Python's `round` goes to the even number.
        return cls(image, (int(height * scale + 0.5), int(width * scale + 0.5)))

    @property
    def padded(self) -> tuple[int, int]:
        """The size of the detector's input."""
        height, width = (-(-side // DIVISOR) * DIVISOR for side in self.resized)
        return height, width

    def resize(self, images: Tensor) -> Tensor:
        """Resize images (B, 3, H, W) in [0, 1] of the size `image` to `resized`, in steps of 1/255.

        Example:
            >>> import torch
            >>> Frame((1, 4), (1, 2)).resize(torch.tensor([0.0, 1.0, 0.2, 0.2]).expand(1, 3, 1, 4))[0, 0]
            tensor([[0.5020, 0.2000]])
        """
        # Halves up, as OpenCV's fixed point; its own rounding of the weights to 1/2048 can move a pixel by one step.
        return (255 * _interpolate(images, self.resized) + 0.5).floor() / 255

    def pad(self, inputs: Tensor) -> Tensor:
        """Pad resized and normalised images with zeros.

        Args:
            inputs: (B, C, h, w) of the size `resized`.

        Returns:
            (B, C, h', w') of the size `padded`.

        Example:
            >>> import torch
            >>> Frame((10, 20), (40, 80)).pad(torch.ones(1, 3, 40, 80)).shape
            torch.Size([1, 3, 64, 96])
        """
        (height, width), (padded_height, padded_width) = self.resized, self.padded
        return functional.pad(inputs, (0, padded_width - width, 0, padded_height - height))

    def restore(self, logits: Tensor) -> Tensor:
        """Resize masks of the padded input to the size of the image, bilinearly.

        Args:
            logits: (N, h, w), of the padded input in some resolution.

        Returns:
            (N, H, W) of the image.

        Example:
            >>> import torch
            >>> Frame((10, 20), (40, 80)).restore(torch.ones(5, 16, 24)).shape
            torch.Size([5, 10, 20])
        """
        height, width = self.resized
        # To the size of the input first, where the padding is cut off exactly.
        inputs = _interpolate(logits[:, None], self.padded)[..., :height, :width]
        return _interpolate(inputs, self.image)[:, 0]


def _interpolate(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values, size, mode="bilinear", align_corners=False)


def find_instances(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, *, min_score: float = THRESHOLD
) -> list[tuple[int, Detection]]:
    """Read the objects of one image from Mask2Former's output.

    As `instance_postprocess` of mmdetection's `MaskFormerFusionHead`: of all pairs of query and class the Q of highest
    probability; the mask is where its logit, brought to the size of the image, is positive; the score is the
    probability of the class times the mean probability of the pixels of the mask; the box just holds the mask. As no
    score exceeds its probability, masks of less probable pairs are never made.

    transformers' `post_process_instance_segmentation` does the same at 384 x 384 and brings the masks to the size of
    the image by nearest neighbour, which moves boxes by a pixel or two.

    Args:
        class_logits: (Q, C + 1), the last class being no object.
        mask_logits: (Q, h, w), of the padded input in some resolution.
        frame: sizes of image and input.
        min_score: only objects of higher score are made.

    Returns:
        Class and detection, masks on the CPU; a query can stand for several classes.

    Example:
        >>> classes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        >>> masks = torch.full((2, 8, 8), -9.0)
        >>> masks[0, 2:4, 2:6] = 9.0
        >>> [(label, found.box) for label, found in find_instances(classes, masks, Frame((32, 32), (32, 32)))]
        [(0, (8.0, 8.0, 24.0, 16.0))]

    Q: queries, C: classes, h, w: resolution of the masks.
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    num_queries, num_classes = probabilities.shape
    top, order = probabilities.flatten().topk(num_queries)
    order = order[top > min_score]
    queries, labels = order // num_classes, order % num_classes
    logits = frame.restore(mask_logits[queries].float()) if len(order) else mask_logits.new_zeros(0, *frame.image)
    masks = logits > 0
    sizes = masks.sum(dim=(1, 2))
    # 1e-6 as in mmdetection: an empty mask scores 0.
    scores = probabilities[queries, labels] * (logits.sigmoid() * masks).sum(dim=(1, 2)) / (sizes + 1e-6)
    rows = zip(labels.tolist(), scores.tolist(), masks.cpu(), strict=True)
    return [(label, Detection(_box(mask), score, mask)) for label, score, mask in rows if score > min_score]


def _box(mask: Tensor) -> Box:
    """The smallest box around the pixels of a mask (H, W), which has some."""
    columns, rows = (mask.any(dim=dim).nonzero().flatten() for dim in (0, 1))
    x0, y0, x1, y1 = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).tolist()
    return float(x0), float(y0), float(x1), float(y1)


DETECTOR = "facebook/mask2former-swin-small-coco-instance"
"""Mask2Former with a Swin-S backbone, trained on COCO's instances."""


class Mask2FormerDetector:
    """Mask2Former, from images to the detections of each class.

    GenEval's own script runs mmdetection's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`. The default here is the
    same architecture with the weights of its authors, so scores differ a little between the two. Images are resized
    and masks are read as by mmdetection (`Frame`, `find_instances`), not as the file of the image processor says
    (384 x 384 for the masks, and in some repositories for the images): only mean and standard deviation come from it.

    Args:
        model: put into evaluation mode and frozen, in place.
        preprocessing: normalisation; it neither resizes nor crops.
        batch_size: images at a time; only images of one size go together.
        min_score: objects of this score or less are left out.
        shorter_side: as for `Frame.of`.
        longer_side: as for `Frame.of`.

    Raises:
        ValueError: the classes are not those of COCO, in COCO's order, or `batch_size` is below 1.

    Example:
        >>> detector = Mask2FormerDetector.from_pretrained(DETECTOR, device="cuda")  # doctest: +SKIP
        >>> (objects,) = detector([image])  # doctest: +SKIP
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
        self.preprocessing = dataclasses.replace(preprocessing, size=None, crop_size=None)
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
            # The sizes are those of `Frame`.
            ImagePreprocessing.from_config({**config, "do_resize": False, "do_center_crop": False}),
            batch_size=batch_size,
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, list[Detection]]]:
        """Find the objects of each image.

        Args:
            images: of any sizes.

        Returns:
            For each image: class -> detections, in no particular order; classes without one are missing.
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
        """Labels and detections of images (B, 3, H, W) in [0, 1]."""
        height, width = images.shape[-2:]
        frame = Frame.of((height, width), shorter_side=self.shorter_side, longer_side=self.longer_side)
        inputs = self.preprocessing(frame.resize(images.to(self.model.device)))
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
