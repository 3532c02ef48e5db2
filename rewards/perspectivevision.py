"""PerspectiveVision: whether an image is unsafe in one of eleven categories, by LLaVA-1.5 with its authors' LoRA."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.vqascore import LLAVA_SYSTEM
from fk_reward.text import did_you_mean

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel

STATUS, CATEGORY = "Safety Status:", "Safety Status: Unsafe, Unsafe Category:"
"""What an answer begins with, before the status and before the category."""

_REPOSITORY = "yiting/PerspectiveVision-LLaVA-LoRA"
_BASE = "llava-hf/llava-1.5-7b-hf"
_TEMPLATE_PLACE, _CATEGORIES_PLACE = "PerspectiveVision/prompts/prompt_template.txt", "data/combined_instruction.txt"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_OTHERS = "non_lora_trainables.bin"
_PROJECTOR = {"mm_projector.0": "multi_modal_projector.linear_1", "mm_projector.2": "multi_modal_projector.linear_2"}

_CARD = RewardCard(
    name="perspectivevision",
    summary='log-odds that the image is "Safe" against "Unsafe" in eleven categories, by PerspectiveVision',
    typical_range=(-10.0, 10.0),
    differentiable=True,
    looks_at="the whole image, padded to a square; not the prompt",
    blind_to=("prompt", "quality"),
    licence="Llama 2 Community Licence (LLaVA-1.5); that of the adapter's hub page; MIT (code)",
    source="Qu et al. 2024, arXiv 2405.03486; PerspectiveVision/eval.py of github.com/YitingQu/UnsafeBench",
    weights=f"{_REPOSITORY} on {_BASE}",
    memory="14 GB in float16",
)


@dataclasses.dataclass(frozen=True)
class UnsafeCategories:
    """The question of the authors, for any of their categories.

    Attributes:
        template: with "[instruction]" where the definitions go.
        definitions: name of a category -> its line, which begins with the name.

    Raises:
        ValueError: without the place, or without a category.

    Example:
        >>> words = UnsafeCategories("Is it unsafe? [instruction]", {"Hate": "Hate: a", "Spam": "Spam: b"})
        >>> words.question(["Spam"])
        'Is it unsafe? Spam: b'
    """

    template: str
    definitions: Mapping[str, str]

    def __post_init__(self) -> None:
        if "[instruction]" not in self.template or not self.definitions:
            raise ValueError("PerspectiveVision's template needs [instruction] in it, and at least one category.")

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> UnsafeCategories:
        """Read the two files of a copy of github.com/YitingQu/UnsafeBench (MIT).

        Raises:
            FileNotFoundError: when one of them is not there.
            ValueError: as the class.
        """
        places = [Path(folder) / place for place in (_TEMPLATE_PLACE, _CATEGORIES_PLACE)]
        for place in places:
            if not place.is_file():
                raise FileNotFoundError(f"{place}: no such file; give a copy of github.com/YitingQu/UnsafeBench.")
        template, lines = (place.read_text(encoding="utf-8") for place in places)
        return cls(template, {line.partition(":")[0]: line for line in lines.splitlines() if line.strip()})

    def question(self, categories: Sequence[str]) -> str:
        """The text after the image.

        Raises:
            ValueError: for an unknown category, or none.
        """
        if not categories:
            raise ValueError("Name at least one category.")
        for name in categories:
            if name not in self.definitions:
                known = ", ".join(self.definitions)
                raise ValueError(f"Unknown category {name!r}.{did_you_mean(name, self.definitions)} Known: {known}.")
        return self.template.replace("[instruction]", "\n".join(self.definitions[name] for name in categories))


class PerspectiveVision(Reward):
    """Log-odds of "Safe" at the first token after "Safety Status:"; the prompts are not read.

    As in `PerspectiveVision/eval.py` images are padded to a square and the question follows LLaVA's system message. The
    authors generate the answer and take its word; where that is "Unsafe", the score is below 0.

    Args:
        model: LLaVA-1.5 with the adapter merged into it, and its processor.
        words: the question.
        categories: names of the categories that count; None for all, which is the authors' default.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: for an unknown category, or a model that begins both answers with the same token.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> guard = load_reward("perspectivevision", words="UnsafeBench")  # doctest: +SKIP
        >>> guard.categories(images)["Violence"]  # doctest: +SKIP
        tensor([0.01, 0.97])
    """

    accepts_uint8 = True

    def __init__(
        self,
        model: AnswerModel,
        *,
        words: UnsafeCategories,
        categories: Sequence[str] | None = None,
        batch_size: int | None = 8,
        card: RewardCard = _CARD,
    ) -> None:
        self.names = tuple(words.definitions if categories is None else categories)
        self.question = words.question(self.names)
        self.safe, self.unsafe = model.first_tokens(["Safe", "Unsafe"], system=LLAVA_SYSTEM, opening=STATUS)
        self.model = model
        self.batch_size = batch_size
        self.card = dataclasses.replace(card, differentiable=model.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Ask the same question about each image."""
        logits = self.model(images, [self.question] * len(images), system=LLAVA_SYSTEM, opening=STATUS)
        return logits[:, self.safe] - logits[:, self.unsafe]

    def categories(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities of the categories, given that an image is unsafe: a pass for each category.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            Name -> (B,) float32; they add up to 1.

        B: number of images, H, W: height and width.
        """
        asked = [self.question] * len(images)
        terms = [
            self.model.answer_log_probabilities(images, asked, name, system=LLAVA_SYSTEM, opening=CATEGORY)
            for name in self.names
        ]
        shares = torch.stack([term.sum(dim=1) for term in terms], dim=1).softmax(dim=1)
        return dict(zip(self.names, shares.unbind(dim=1), strict=True))


def merge_llava_lora(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Merge an adapter in the layout of LLaVA's own repository into transformers' LLaVA, in place.

    Each weight W becomes W + s B A, computed in float32, with s = alpha / r, or alpha / sqrt(r) where the adapter says
    `use_rslora`. `non_lora_trainables.bin` replaces the projector.

    Args:
        model: `LlavaForConditionalGeneration`.
        folder: with `adapter_config.json`, `adapter_model.safetensors` or `.bin`, and perhaps
            `non_lora_trainables.bin`.

    Raises:
        FileNotFoundError: when the adapter is not there.
        ValueError: for tensors that do not fit the model, one by one.
    """
    folder = Path(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = settings["r"], settings["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    weights = dict(model.named_parameters())
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _read(_existing(folder, _ADAPTERS)).items():
        match = re.fullmatch(r"(.*)\.lora_([AB])(?:\.default)?\.weight", name)
        target = _transformers_name(f"{match[1]}.weight") if match else name
        if match is None or target not in weights:
            raise ValueError(f"{folder}: {name} does not belong to a LoRA of this model.")
        factors.setdefault(target, {})[match[2]] = tensor.float()
    with torch.no_grad():
        for target, pair in factors.items():
            _add(weights[target], pair, scale, f"{folder}: {target}")
        if (folder / _OTHERS).is_file():
            _replace(weights, _read(folder / _OTHERS), folder)


def _add(weight: Tensor, pair: Mapping[str, Tensor], scale: float, what: str) -> None:
    if pair.keys() != {"A", "B"} or (pair["B"].shape[0], pair["A"].shape[1]) != tuple(weight.shape):
        shapes = {side: tuple(tensor.shape) for side, tensor in pair.items()}
        raise ValueError(f"{what} of shape {tuple(weight.shape)} cannot take the factors {shapes}.")
    added = scale * (pair["B"].to(weight.device) @ pair["A"].to(weight.device))
    weight.copy_(weight.float() + added)


def _replace(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path) -> None:
    for name, tensor in tensors.items():
        target = _transformers_name(name)
        if target not in weights or weights[target].shape != tensor.shape:
            raise ValueError(f"{folder}: {name} {tuple(tensor.shape)} of {_OTHERS} does not fit the model.")
        weights[target].copy_(tensor)


def _transformers_name(name: str) -> str:
    """Name of a weight of LLaVA's repository, with PEFT's prefixes, in transformers' model."""
    inner = re.sub(r"^(?:base_model\.)?(?:model\.)*", "", name)
    for theirs, ours in _PROJECTOR.items():
        if inner.startswith(f"{theirs}."):
            return f"model.{ours}{inner.removeprefix(theirs)}"
    return f"model.language_model.{inner}"


def _existing(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(names)}.")


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    from fk_reward.rewards.weights import read_state_dict

    return load_file(path) if path.suffix == ".safetensors" else read_state_dict(path)


def load_perspectivevision(  # noqa: PLR0913 (options of one reward)
    *,
    words: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] = _BASE,
    categories: Sequence[str] | None = None,
    torch_dtype: torch.dtype = torch.float16,
    revision: str = "main",
    batch_size: int | None = 8,
) -> PerspectiveVision:
    """Load PerspectiveVision: what `load_reward("perspectivevision", ...)` calls.

    Args:
        words: folder with a copy of github.com/YitingQu/UnsafeBench, whose question and categories are read.
        adapter: folder of the adapter in the layout of LLaVA's repository; None for that of the hub.
        model: hub id or folder of LLaVA-1.5-7B in the layout of transformers.
        categories: names of the categories that count; None for all.
        torch_dtype: floating dtype of the weights.
        revision: branch, tag or commit of the adapter's hub repository.
        batch_size: number of images that go through the model at once; None for all of one size.

    Raises:
        FileNotFoundError: when files of the adapter or of the words are missing.
        OSError: when files of the model are missing.
        ValueError: without `words`, for a model that is no LLaVA-1.5, and as `merge_llava_lora`, `PerspectiveVision`.
    """
    from transformers import LlavaForConditionalGeneration

    from fk_reward.rewards.answer_model import AnswerModel, load_processor
    from fk_reward.rewards.weights import load_complete

    if words is None:
        raise ValueError(
            "The question is its authors' and not part of this package: fetch github.com/YitingQu/UnsafeBench, and "
            "give words=<folder>."
        )
    asked = UnsafeCategories.read(words)
    network = load_complete(LlavaForConditionalGeneration, model, dtype=torch_dtype)  # its own: the merge changes it
    merge_llava_lora(network, _download(revision) if adapter is None else adapter)
    card = _CARD if adapter is None else dataclasses.replace(_CARD, weights=f"{os.fspath(adapter)} on {model}")
    made = AnswerModel(network, load_processor(model))
    return PerspectiveVision(made, words=asked, categories=categories, batch_size=batch_size, card=card)


def _download(revision: str) -> str:
    from huggingface_hub import snapshot_download

    files = ["adapter_config.json", *_ADAPTERS, _OTHERS]
    return snapshot_download(_REPOSITORY, revision=revision, allow_patterns=files)


PERSPECTIVEVISION = RewardEntry(_CARD, load_perspectivevision)
