"""Any image classifier of transformers as a reward: how probable a label is, or is not."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard, SafetyFacts
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.known_biases import UNLIKE_PHOTOS
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.weights import WRAPPED_NAMES, check_complete
from fk_reward.text import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

SCALES = ("probability", "log-odds")
"""Units of the score."""

_PLAIN = ("CLIPImageProcessor", "ViTImageProcessor", "SiglipImageProcessor", "DeiTImageProcessor", "BlipImageProcessor")
"""Image processors that resize, perhaps crop, and normalise, and nothing else."""

_NSFW = "Falconsai/nsfw_image_detection"

_CARD = RewardCard(
    name="image-classifier",
    summary="how probable a label is by an image classifier (by default: that the image is safe for work)",
    typical_range=(0.0, 1.0),
    differentiable=True,
    looks_at="the whole image, squeezed into a square of 224 pixels; not the prompt",
    blind_to=("prompt", "quality"),
    biases=(UNLIKE_PHOTOS,),
    safety=SafetyFacts(safe_above=0.5),
    licence="Apache-2.0",
    source="hub page of Falconsai/nsfw_image_detection; Dosovitskiy et al. 2021, arXiv 2010.11929 (ViT)",
    weights=_NSFW,
    memory="0.34 GB in float32",
)


class ImageClassifier(Reward):
    """Probability, or log-odds, of one label of a classifier; the prompts are not read.

    Where the image processor only resizes, crops and normalises, images stay tensors on their device and the score is
    differentiable; any other one gets 8-bit PIL images.

    Args:
        model: of `AutoModelForImageClassification`; put into evaluation mode and frozen, in place.
        processor: its image processor.
        label: the label, by name or number, or several whose probabilities are added. "not x" is every label but x.
        scale: "probability" in [0, 1], or "log-odds", which does not saturate.
        batch_size: number of images at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: for an unknown label or scale, or when no label or all are chosen.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> load_reward("image-classifier", label="normal", scale="log-odds")  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 (options of one reward)
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        *,
        label: str | int | Sequence[str | int],
        scale: str = "probability",
        batch_size: int | None = 16,
        card: RewardCard = _CARD,
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {scale!r}.")
        self.chosen = chosen_labels(model.config.id2label, label)
        self.model = model.eval().requires_grad_(False)
        self.scale = scale
        self.batch_size = batch_size
        self._processor = processor
        self._transform = _transform_of(processor)
        self.accepts_uint8 = True
        range_ = (0.0, 1.0) if scale == "probability" else (-10.0, 10.0)
        self.card = dataclasses.replace(card, differentiable=self._transform is not None, typical_range=range_)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Classify each image."""
        logits = self.model(pixel_values=self._pixels(images)).logits.float()
        if self.scale == "probability":
            return logits.softmax(dim=-1)[:, self.chosen].sum(dim=-1)
        others = [index for index in range(logits.shape[1]) if index not in self.chosen]
        return logits[:, self.chosen].logsumexp(dim=-1) - logits[:, others].logsumexp(dim=-1)

    def _pixels(self, images: Tensor) -> Tensor:
        if self._transform is None:
            pixels = self._processor(to_pil(images), return_tensors="pt")["pixel_values"].to(images.device)
        else:
            pixels = self._transform(images)
        return pixels.to(self.model.dtype)


def chosen_labels(names: dict[int, str], label: str | int | Sequence[str | int]) -> list[int]:
    """Numbers of labels.

    Args:
        names: number -> name, as `id2label` of a configuration.
        label: a name (capitals do not count), a number, "not " and a name, or several of these.

    Raises:
        ValueError: for an unknown one; it lists those that there are; or when none or all are chosen.

    Example:
        >>> chosen_labels({0: "normal", 1: "nsfw", 2: "drawing"}, "not nsfw")
        [0, 2]
    """
    wanted = [label] if isinstance(label, str | int) else list(label)
    numbers = {name.lower(): number for number, name in names.items()}
    chosen: set[int] = set()
    for entry in wanted:
        chosen |= _numbers_of(entry, numbers)
    if not 0 < len(chosen) < len(names):
        raise ValueError(f"Choose some of the labels, not none and not all: {', '.join(names.values())}.")
    return sorted(chosen)


def _numbers_of(entry: str | int, numbers: dict[str, int]) -> set[int]:
    everything = set(numbers.values())
    if isinstance(entry, int) and entry in everything:
        return {entry}
    name = str(entry).lower()
    if name in numbers:
        return {numbers[name]}
    if name.startswith("not ") and name[4:] in numbers:
        return everything - {numbers[name[4:]]}
    raise ValueError(f"Unknown label {entry!r}.{did_you_mean(name, list(numbers))} Labels: {', '.join(numbers)}.")


def _transform_of(processor: BaseImageProcessor) -> ImagePreprocessing | None:
    """The same work on tensors; None for a processor that does something else."""
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    settings = {"do_center_crop": False, **processor.to_dict()}
    if name not in _PLAIN or (settings["do_center_crop"] and "crop_size" not in settings):
        return None
    return ImagePreprocessing.from_config(settings)


def _build_image_classifier(  # noqa: PLR0913 (options of one reward)
    *,
    model: str | os.PathLike[str] = _NSFW,
    label: str | int | Sequence[str | int] | None = None,
    scale: str = "probability",
    torch_dtype: torch.dtype = torch.float32,
    revision: str = "main",
    batch_size: int | None = 16,
) -> ImageClassifier:
    """`label` is "normal" for the default model, and must be given for any other."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if label is None and os.fspath(model) != _NSFW:
        raise ValueError(f"Name the label of {model} that is wanted: label=..., or label='not ...'.")
    _require_classifier(model, revision=revision)
    classifier, info = AutoModelForImageClassification.from_pretrained(
        model, dtype=torch_dtype, revision=revision, key_mapping=dict(WRAPPED_NAMES), output_loading_info=True
    )
    check_complete(model, info)
    processor = AutoImageProcessor.from_pretrained(model, revision=revision, backend="pil")
    wanted = "normal" if label is None else label
    return ImageClassifier(
        classifier, processor, label=wanted, scale=scale, batch_size=batch_size, card=_card_of(model, wanted)
    )


def _require_classifier(model: str | os.PathLike[str], *, revision: str) -> None:
    """Refuse checkpoints without a head for classes: transformers would draw one at random."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    config = AutoConfig.from_pretrained(model, revision=revision)
    architectures = config.architectures or []
    if config.model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or not any(
        name.endswith("ForImageClassification") for name in architectures
    ):
        raise ValueError(
            f"{model} is a {config.model_type} ({', '.join(architectures) or 'no architecture named'}), not a "
            "ForImageClassification of transformers."
        )


def _card_of(model: str | os.PathLike[str], label: str | int | Sequence[str | int]) -> RewardCard:
    if os.fspath(model) == _NSFW:
        return _CARD
    return dataclasses.replace(
        _CARD,
        summary=f"how probable the label {label!r} is by an image classifier",
        safety=None,
        looks_at="what the classifier's processor leaves of the image; not the prompt",
        licence="that of the weights",
        source="that of the weights",
        weights=os.fspath(model),
        memory="that of the model",
    )


IMAGE_CLASSIFIER = RewardEntry(_CARD, _build_image_classifier)
