"""Text in images: how much of the quoted text of a prompt an optical character recogniser finds in the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.registry import RewardEntry
from fk_reward.text import shortened

TARGETS = ("quoted", "whole")
"""What of a prompt is the text: the first piece in double quotes, or all of it."""

_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')

_CARD = RewardCard(
    name="ocr",
    summary="share of the quoted text of the prompt that a recogniser of text finds in the image, 1 for all of it",
    typical_range=(0.0, 1.0),
    looks_at="the whole image, its longer side at 960 pixels at most; text that the recogniser finds, nothing else",
    blind_to=("quality",),
    biases=("reads Latin and Chinese script best, on straight lines: PP-OCRv6's documentation",),
    licence="Apache-2.0 (RapidOCR and PP-OCRv6)",
    source="reward of Flow-GRPO, Liu et al. 2025, arXiv 2505.05470; github.com/yifan123/flow_grpo, there by PaddleOCR",
    weights="in the package rapidocr",
    memory="0.2 GB, on the CPU",
)


class TextReader(Protocol):
    """A recogniser of text; a custom class needs this method only."""

    def read(self, image: np.ndarray) -> Sequence[str]:
        """Read an image, (H, W, 3) uint8 RGB: its lines of text from top to bottom, none where there is no text."""
        ...


class RapidReader:
    """PP-OCRv6 (small) by the package rapidocr, which carries its weights: `pip install 'fk-reward[ocr]'`.

    Detection as in PaddleOCR's Python package of Flow-GRPO: images are only made smaller, to 960 pixels on the longer
    side, and lines that are less certain than 0.5 are dropped. Lines are not turned.

    Args:
        num_threads: of the CPU; None for all of them.

    Raises:
        ImportError: without the packages.
    """

    def __init__(self, *, num_threads: int | None = None) -> None:
        threads = -1 if num_threads is None else num_threads
        engine = _import_rapidocr()
        self._read = engine(
            params={
                "Global.log_level": "critical",
                "Global.use_cls": False,
                "Det.limit_type": "max",  # rapidocr's own "min" blows an image of 1 x 64 pixels up to 736 x 47104
                "Det.limit_side_len": 960,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": threads,
            }
        )

    def read(self, image: np.ndarray) -> Sequence[str]:
        """Lines of text that are found."""
        # Channels in the order of OpenCV, which read the images that the model was trained on.
        return self._read(np.ascontiguousarray(image[..., ::-1])).txts or ()


class OCRReward(Reward):
    """1 minus the edit distance between what is written in the image and what the prompt quotes, over its length.

    Flow-GRPO's definition: white space and capitals do not count; where the quoted text stands anywhere in what was
    read, the distance is 0, so that other text does no harm; it is at most the length, so that the score is in [0, 1].
    Not differentiable: the recogniser gets 8-bit images.

    Args:
        reader: a `RapidReader`, or any object with `read`.
        target: "quoted" for the first text in "double quotes" (or “curly” ones) of a prompt, "whole" for all of it.
        card: facts about the recogniser.

    Raises:
        ValueError: for another target.

    Example:
        >>> class Signwriter:
        ...     def read(self, image):
        ...         return ["STOP", "sign"] if image.mean() > 127 else []
        >>> OCRReward(Signwriter())(torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)]), 'a sign that says "Stop"')
        tensor([1., 0.])
    """

    accepts_uint8 = True

    def __init__(self, reader: TextReader, *, target: str = "quoted", card: RewardCard = _CARD) -> None:
        if target not in TARGETS:
            raise ValueError(f"target must be one of {TARGETS}, got {target!r}.")
        self.reader = reader
        self.target = target
        self.card = card

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Read each image.

        Raises:
            ValueError: for a prompt that quotes nothing.
        """
        targets = [target_text(prompt, self.target) for prompt in prompts]
        found = [self.reader.read(np.asarray(image)) for image in to_pil(images)]
        scores = [text_score("".join(lines), target) for lines, target in zip(found, targets, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)


def target_text(prompt: str, target: str = "quoted") -> str:
    """What is to be written in the image.

    Args:
        prompt: of the image.
        target: "quoted" or "whole".

    Raises:
        ValueError: where there is none, or white space alone.

    Example:
        >>> target_text('a shop called "Fleur & Co", and a dog called "Rex"'), target_text("Fleur & Co", "whole")
        ('Fleur & Co', 'Fleur & Co')
    """
    if target == "whole":
        found = prompt
    else:
        match = _QUOTED.search(prompt)
        found = "" if match is None else match.group(1) or match.group(2) or ""
    if not found.strip():
        raise ValueError(
            f"The reward ocr needs a prompt with the text in double quotes, as in 'a sign that says \"Open\"', got "
            f'{shortened(repr(prompt), 200)}. With target="whole" the whole prompt is the text.'
        )
    return found


def text_score(found: str, target: str) -> float:
    """Flow-GRPO's score of the text that was found, in [0, 1].

    Args:
        found: text in the image.
        target: text that should be there; not white space alone.

    Example:
        >>> text_score("Happy New Year 2026", "new year"), text_score("Hapyp", "Happy"), text_score("", "Happy")
        (1.0, 0.6, 0.0)
    """
    found, target = _levelled(found), _levelled(target)
    if target in found:
        return 1.0
    return 1 - min(edit_distance(found, target), len(target)) / len(target)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions of characters.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        before, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return row[-1]


def _levelled(text: str) -> str:
    return "".join(text.split()).lower()


def _import_rapidocr() -> Any:
    try:
        import onnxruntime  # noqa: F401 (rapidocr does without it until it reads)
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError("The reward ocr needs rapidocr and onnxruntime: pip install 'fk-reward[ocr]'.") from error
    return RapidOCR


def _build_ocr(
    *, reader: TextReader | None = None, target: str = "quoted", num_threads: int | None = None
) -> OCRReward:
    if reader is not None and num_threads is not None:
        raise TypeError("num_threads is for the recogniser of the package: set up the reader that you pass.")
    return OCRReward(reader or RapidReader(num_threads=num_threads), target=target)


OCR = RewardEntry(_CARD, _build_ocr)
