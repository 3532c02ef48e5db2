"""What a LLaVA-Reward checkpoint says about itself."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from fk_reward.documents import parse_json
from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.llava_reward.objective import find_objective

ATTENDS_TO = ("visual", "nothing")

_TYPES: dict[str, type | tuple[type, ...]] = {
    "value_head_dim": int,
    "cross_attention": bool,
    "temperature": (int, float),
    "backbone_options": dict,
}
"""Expected types of the fields that are not strings."""


@dataclass(frozen=True, kw_only=True)
class LlavaRewardConfig:
    """Settings of one dimension of LLaVA-Reward: everything that its weights do not say.

    Attributes:
        dimension: what it judges ("alignment"), also the name of its adapter: letters, digits, "-" and "_".
        backbone: `model_type` of the backbone ("phi3_v", "qwen2_5_vl", "llava_next").
        base_model: hub id or folder of the backbone that it was trained on.
        objective: "bradley-terry" (a scalar), "binary" (the logit of a yes) or "general-preference" (a vector).
        value_head_dim: size of the raw output; even for general preferences, otherwise 1.
        cross_attention: whether there is a SkipCA between the backbone and the value head.
        attends_to: what SkipCA sees: the "visual" tokens; or "nothing", which reproduces the official Qwen2.5-VL
            rewards, whose SkipCA selects padding instead of the image.
        temperature: divisor of reward differences and preference forms in the training loss, positive.
        backbone_options: preprocessing that it was trained with, by the names of the backbone's options.

    Raises:
        TypeError: for a field of the wrong type.
        ValueError: for a value that is not allowed above.

    Example:
        >>> config = LlavaRewardConfig(dimension="safety", backbone="phi3_v", base_model="a folder or hub id")
        >>> LlavaRewardConfig.from_json(config.to_json()) == config
        True
    """

    dimension: str
    backbone: str
    base_model: str
    objective: str = "bradley-terry"
    value_head_dim: int = 1
    cross_attention: bool = True
    attends_to: str = "visual"
    temperature: float = 0.1
    backbone_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        if not re.fullmatch(r"[\w-]+", self.dimension, re.ASCII):
            raise ValueError(f"dimension may have letters, digits, '-' and '_', got {self.dimension!r}.")
        for name in ("backbone", "base_model"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty.")
        if self.attends_to not in ATTENDS_TO:
            raise ValueError(f"attends_to must be one of {', '.join(ATTENDS_TO)}, got {self.attends_to!r}.")
        if self.attends_to == "nothing" and not self.cross_attention:
            raise ValueError("attends_to='nothing' is a setting of SkipCA, but cross_attention is False.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}.")
        find_objective(self.objective).check_outputs(self.value_head_dim)

    def to_dict(self) -> dict[str, Any]:
        """All fields by their names."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> LlavaRewardConfig:
        """Build a config from a mapping. Unknown keys raise, so that a misspelt or newer one is not ignored.

        Raises:
            TypeError: for a field of the wrong type.
            ValueError: for unknown keys, absent keys and values that the class refuses.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"Unknown keys {unknown}; a config has {sorted(known)}.")
        required = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
        if missing := sorted(required - set(settings)):
            raise ValueError(f"Missing keys {missing}.")
        return cls(**settings)

    def to_json(self) -> str:
        """All fields as a JSON object.

        Raises:
            TypeError: when a backbone option is not a plain JSON value.
        """
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LlavaRewardConfig:
        """Read what `to_json` wrote.

        Raises:
            TypeError: for a field of the wrong type.
            ValueError: when it is not a JSON object, and as for `from_dict`.
        """
        settings = parse_json(text, "the config of the reward")
        if not isinstance(settings, dict):
            raise ValueError(f"Expected a JSON object, got {type(settings).__name__}.")
        return cls.from_dict(settings)

    def _check_types(self) -> None:
        for item in fields(self):
            value, expected = getattr(self, item.name), _TYPES.get(item.name, str)
            # bool is a subclass of int: True must not pass for a number.
            if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
                raise TypeError(f"{item.name} must be of type {item.type}, got {value!r}.")


DIMENSIONS: dict[str, str] = {
    "alignment": "how well the image shows what the prompt says",
    "fidelity": "how sound and free of artefacts the image is",
    "safety": "how harmless the image is",
    "overall": "overall preference",
}
"""Dimensions of the official checkpoints and what they judge."""

BLIND_TO: dict[str, tuple[str, ...]] = {"fidelity": ("prompt",), "safety": ("prompt", "quality")}
"""What a dimension need not depend on, as in `RewardCard.blind_to`."""

SOURCE = "Zhou et al., ICCV 2025, arXiv 2507.21391; github.com/sjz5202/LLaVA-Reward"
TEMPERATURE = 0.1
TEMPERATURE_SOURCE = "temperature of the training loss, a difference of scores that means odds of e; not measured"

CUSTOM_CARD = RewardCard(
    name="llava-reward",
    summary="LLaVA-Reward with your own backbone and adapter",
    spread=TEMPERATURE,
    spread_source=TEMPERATURE_SOURCE,
    differentiable=True,
    looks_at="the whole image",
    licence="that of the backbone and the adapter",
    source=SOURCE,
    weights="given by the caller",
    memory="that of the backbone",
)


def card_of(dimension: str) -> RewardCard:
    """The card of a dimension of a user's own checkpoint.

    Example:
        >>> card_of("alignment").summary
        'LLaVA-Reward: how well the image shows what the prompt says'
    """
    summary = f"LLaVA-Reward: {DIMENSIONS.get(dimension, dimension)}"
    blind_to = BLIND_TO.get(dimension, ())
    return dataclasses.replace(CUSTOM_CARD, name=f"llava-reward-{dimension}", summary=summary, blind_to=blind_to)
