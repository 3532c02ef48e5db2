"""NudeNet: exposed body parts that a small detector finds, as a safety reward; the prompt is not read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fk_reward.rewards.base import Reward, RewardCard, SafetyFacts
from fk_reward.rewards.known_biases import UNLIKE_PHOTOS
from fk_reward.rewards.preprocessing import unit_float
from fk_reward.rewards.registry import RewardEntry

CLASSES = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
"""Classes of the detector, in the order of its outputs (NudeNet 3)."""

UNSAFE = (
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_EXPOSED",
)
"""Classes that count by default: exposed, and not shown in public everywhere."""

REPORTED = 0.25
"""Probability from which NudeNet itself reports a detection."""

_FILE = "320n.onnx"
_NUM_BOX = 4  # rows of the output before those of the classes: a box

_CARD = RewardCard(
    name="nudenet",
    summary="1 minus the largest probability of an exposed intimate body part; blind to the prompt",
    typical_range=(0.0, 1.0),
    looks_at="the whole image, at 320 x 320 pixels, padded on the right or below",
    blind_to=("prompt", "quality"),
    biases=("calls rounded areas in skin colours exposed: examples/benchmarks/reward_detectors.py", UNLIKE_PHOTOS),
    safety=SafetyFacts(safe_above=1 - REPORTED),  # NudeNet reports nothing there
    licence="AGPL-3.0 (licence file in the package nudenet; its metadata say MIT)",
    source="github.com/notAI-tech/NudeNet, 3.4: a YOLOv8 of nano size",
    weights="in the package nudenet",
    memory="0.1 GB, on the CPU",
)


class NudeNet(Reward):
    """1 minus the largest probability, over the image, of the classes that count.

    A place of the image belongs to its most likely class, as in NudeNet; its threshold and the suppression of
    overlapping boxes are left out, so that the score is continuous and an image below the threshold has one, too.
    `probabilities` gives all classes. NudeNet reads files with OpenCV and swaps red and blue twice, so that its network
    sees them in the order of OpenCV; here, too.

    Args:
        session: `onnxruntime.InferenceSession` of the detector.
        classes: of `CLASSES`, those that count.
        resolution: side of the square that the detector sees, a multiple of 32.
        batch_size: number of images at once.
        card: facts about the weights.

    Raises:
        ValueError: for no or unknown classes, or a resolution that is no multiple of 32.
    """

    def __init__(
        self,
        session: Any,
        *,
        classes: Sequence[str] = UNSAFE,
        resolution: int = 320,
        batch_size: int | None = 8,
        card: RewardCard = _CARD,
    ) -> None:
        unknown = sorted(set(classes) - set(CLASSES))
        if unknown or not classes:
            raise ValueError(f"classes must be some of {', '.join(CLASSES)}; got {unknown or 'none'}.")
        if resolution < 32 or resolution % 32:
            raise ValueError(f"resolution must be a multiple of 32, got {resolution}.")
        self.session = session
        self.classes = tuple(classes)
        self.resolution = resolution
        self.batch_size = batch_size
        self.card = card

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Look at each image."""
        found = self.probabilities(images)
        return 1 - found[:, [CLASSES.index(name) for name in self.classes]].amax(dim=1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Largest probability of each class among the places where it is the most likely one; 0 where there is none.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            (B, 18) float32 in [0, 1], in the order of `CLASSES`.

        B: number of images, H, W: height and width.
        """
        pixels = detector_pixels(images, self.resolution).cpu().numpy()
        name = self.session.get_inputs()[0].name
        return class_probabilities(torch.from_numpy(self.session.run(None, {name: pixels})[0])).to(images.device)

    def parts(self, image: Tensor) -> dict[str, float]:
        """Classes with a probability of at least `REPORTED` in one image (3, H, W), the most probable first."""
        found = self.probabilities(image[None])[0].tolist()
        named = sorted(zip(CLASSES, found, strict=True), key=lambda pair: -pair[1])
        return {name: probability for name, probability in named if probability >= REPORTED}


def detector_pixels(images: Tensor, resolution: int) -> Tensor:
    """What the detector sees: a square, black on the right or below, small, channels blue, green, red.

    Args:
        images: (B, 3, H, W), floating in [0, 1] or uint8.
        resolution: side of the square that comes out.

    Returns:
        (B, 3, resolution, resolution) float32 in [0, 1].

    Example:
        >>> detector_pixels(torch.ones(1, 3, 64, 32), 32)[0, 0, 0, [0, 15, 16, 31]]
        tensor([1., 1., 0., 0.])

    B: number of images, H, W: height and width.
    """
    height, width = images.shape[-2:]
    side = max(height, width)
    square = functional.pad(unit_float(images).float(), (0, side - width, 0, side - height))
    # Without antialias, as OpenCV's bilinear filter.
    small = functional.interpolate(square, (resolution, resolution), mode="bilinear", align_corners=False)
    return small.flip(1)


def class_probabilities(output: Tensor) -> Tensor:
    """Largest probability of each class among the places where it is the most likely one.

    Args:
        output: (B, 4 + C, N) of the detector: boxes, then class probabilities.

    Returns:
        (B, C); 0 for a class that is nowhere the most likely one.

    Example:
        >>> class_probabilities(torch.tensor([[[0.0, 0.0]] * 4 + [[0.9, 0.1], [0.2, 0.3]]]))
        tensor([[0.9000, 0.3000]])

    B: number of images, C: number of classes, N: number of places.
    """
    probabilities = output[:, _NUM_BOX:]
    most_likely = probabilities == probabilities.amax(dim=1, keepdim=True)
    return torch.where(most_likely, probabilities, 0).amax(dim=2)


def _build_nudenet(
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: Sequence[str] = UNSAFE,
    resolution: int = 320,
    num_threads: int | None = None,
    batch_size: int | None = 8,
    session: Any = None,
) -> NudeNet:
    """`weights` is an ONNX file such as NudeNet's larger `640m.onnx` (resolution 640); None for the package's."""
    if session is None:
        session = _make_session(_package_weights() if weights is None else Path(weights), num_threads)
    return NudeNet(session, classes=classes, resolution=resolution, batch_size=batch_size)


def _make_session(path: Path, num_threads: int | None) -> Any:
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: expected an ONNX file of NudeNet 3.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rows = [output.shape[1] for output in session.get_outputs()]
    if rows != [_NUM_BOX + len(CLASSES)]:
        raise ValueError(
            f"{path} is not a detector of NudeNet 3, with {_NUM_BOX + len(CLASSES)} rows of output: {rows}."
        )
    return session


def _package_weights() -> Path:
    """The file in the package nudenet, whose code is not imported."""
    found = util.find_spec("nudenet")
    if found is None or found.origin is None or util.find_spec("onnxruntime") is None:
        raise ImportError("The reward nudenet needs nudenet and onnxruntime: pip install 'fk-reward[nudenet]'.")
    return Path(found.origin).parent / _FILE


NUDENET = RewardEntry(_CARD, _build_nudenet)
