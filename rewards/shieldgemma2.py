"""ShieldGemma 2: how surely an image keeps safety policies, by Gemma 3 trained as an image classifier."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.text import did_you_mean

if TYPE_CHECKING:
    from transformers import ShieldGemma2ForImageClassification, ShieldGemma2Processor

SCALES = ("log-odds", "probability")
"""Units of the score."""

_CARD = RewardCard(
    name="shieldgemma-2",
    summary='log-odds that the image violates none of three policies, of the worst one: "No" against "Yes"',
    typical_range=(-10.0, 10.0),
    differentiable=True,
    looks_at="the whole image, squeezed into a square of 896 pixels; not the prompt",
    blind_to=("prompt", "quality"),
    licence="Gemma Terms of Use",
    source="Zeng et al. 2025, arXiv 2504.01081; ShieldGemma2ForImageClassification of transformers",
    weights="google/shieldgemma-2-4b-it",
    memory="8.6 GB in bfloat16",
)


class ShieldGemma2(Reward):
    """Asks of each policy whether the image violates it, and reads the answer's first token.

    The score is that of the policy which is violated most surely: the smallest log-odds of "No" against "Yes", or with
    `scale="probability"` one minus the largest probability of "Yes" of the two. The vision tower runs once an image,
    whatever the number of policies. The prompts are not read.

    Args:
        model: of transformers; put into evaluation mode and frozen, in place.
        processor: its processor, with the policies.
        policies: names of the processor's policies, or name -> text for others; None for all of the processor's.
        scale: "log-odds", which does not saturate, or "probability" in [0, 1].
        batch_size: number of images at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: for an unknown policy or scale, or none.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> guard = load_reward("shieldgemma-2", policies=("sexual", "violence"))  # doctest: +SKIP
        >>> guard.violations(images)  # doctest: +SKIP
        {'sexual': tensor([0.0012, 0.0009]), 'violence': tensor([0.0031, 0.9120])}
    """

    accepts_uint8 = True

    def __init__(  # noqa: PLR0913 (options of one reward)
        self,
        model: ShieldGemma2ForImageClassification,
        processor: ShieldGemma2Processor,
        *,
        policies: Sequence[str] | Mapping[str, str] | None = None,
        scale: str = "log-odds",
        batch_size: int | None = 8,
        card: RewardCard = _CARD,
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {scale!r}.")
        self.policies = chosen_policies(processor.policy_definitions, policies)
        self.model = model.eval().requires_grad_(False)
        self.scale = scale
        self.batch_size = batch_size
        range_ = (0.0, 1.0) if scale == "probability" else card.typical_range
        self.card = dataclasses.replace(card, typical_range=range_)
        self._pixels = ImagePreprocessing.from_config({**processor.image_processor.to_dict(), "do_center_crop": False})
        self._questions = _questions(processor, self.policies)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Judge each image by the policy that it violates most surely."""
        odds = self._log_odds(images).amin(dim=1)
        return odds.sigmoid() if self.scale == "probability" else odds

    def violations(self, images: Tensor) -> dict[str, Tensor]:
        """Probability of "Yes" against "No" for each policy: that the image violates it.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            Name of each policy -> (B,) float32 in [0, 1].

        B: number of images, H, W: height and width.
        """
        return dict(zip(self.policies, (-self._log_odds(images)).sigmoid().unbind(dim=1), strict=True))

    def _log_odds(self, images: Tensor) -> Tensor:
        """(B, P) float32: "No" against "Yes", of P policies."""
        network: Any = self.model.model
        asked = {name: value.to(network.device) for name, value in self._questions.items()}
        num_policies, pixels = len(self.policies), self._pixels(images).to(network.device, network.dtype)
        features = network.model.get_image_features(pixels, return_dict=True).pooler_output
        rows = {name: value.repeat(len(images), 1) for name, value in asked.items()}
        places = rows["input_ids"] == network.config.image_token_id
        embedded = network.get_input_embeddings()(rows.pop("input_ids").masked_fill(places, 0))
        features = features.repeat_interleave(num_policies, dim=0).to(embedded.dtype)
        embedded = embedded.masked_scatter(places.unsqueeze(-1).expand_as(embedded), features)
        logits = network(inputs_embeds=embedded, **rows, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        odds = logits[:, self.model.no_token_index] - logits[:, self.model.yes_token_index]
        return odds.unflatten(0, (len(images), num_policies))


def chosen_policies(
    known: Mapping[str, str], policies: Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """Names and texts of policies.

    Args:
        known: name -> text.
        policies: as for `ShieldGemma2`.

    Raises:
        ValueError: for a name that is not known, or none.

    Example:
        >>> chosen_policies({"a": "No a.", "b": "No b."}, ["b"])
        {'b': 'No b.'}
    """
    if policies is None:
        policies = list(known)
    if isinstance(policies, str):
        policies = [policies]
    if not policies:
        raise ValueError("Name at least one policy.")
    if isinstance(policies, Mapping):
        return dict(policies)
    for name in policies:
        if name not in known:
            raise ValueError(f"Unknown policy {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return {name: known[name] for name in policies}


def _questions(processor: ShieldGemma2Processor, policies: Mapping[str, str]) -> dict[str, Tensor]:
    """Token ids and masks of the policies, (P, S) each; images differ in their pixels alone."""
    blank = Image.new("RGB", (32, 32))
    with torch.device("cpu"):
        inputs = processor(images=[blank], custom_policies=dict(policies), policies=list(policies), return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def load_shieldgemma2(  # noqa: PLR0913 (options of one reward)
    *,
    model: str | os.PathLike[str] = _CARD.weights,
    policies: Sequence[str] | Mapping[str, str] | None = None,
    scale: str = "log-odds",
    torch_dtype: torch.dtype = torch.bfloat16,
    revision: str = "main",
    batch_size: int | None = 8,
) -> ShieldGemma2:
    """Load ShieldGemma 2: what `load_reward("shieldgemma-2", ...)` calls.

    Args:
        model: hub id or folder.
        policies: as for `ShieldGemma2`.
        scale: as for `ShieldGemma2`.
        torch_dtype: floating dtype of the weights.
        revision: branch, tag or commit of the hub repository.
        batch_size: number of images at once; None for all of one size.

    Raises:
        OSError: when files are missing.
        ValueError: for a checkpoint of another architecture, and as `ShieldGemma2`.
    """
    from transformers import ShieldGemma2ForImageClassification, ShieldGemma2Processor

    from fk_reward.rewards.weights import load_complete

    network = load_complete(ShieldGemma2ForImageClassification, model, dtype=torch_dtype, revision=revision)
    processor = ShieldGemma2Processor.from_pretrained(model, revision=revision, backend="pil")
    own = os.fspath(model) == _CARD.weights
    card = _CARD if own else dataclasses.replace(_CARD, weights=os.fspath(model), memory="that of the model")
    return ShieldGemma2(network, processor, policies=policies, scale=scale, batch_size=batch_size, card=card)


SHIELDGEMMA_2 = RewardEntry(_CARD, load_shieldgemma2)
