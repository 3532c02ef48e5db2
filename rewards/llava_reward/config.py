"""What a LLaVA-Reward checkpoint says about itself."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType
from typing import TYPE_CHECKING, Any

from fk_reward.documents import parse_json
from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.llava_reward.objective import find_objective
from fk_reward.rewards.noise_bands import Calibration, NoiseBand

if TYPE_CHECKING:
    from torch import Tensor

ATTENDS_TO = ("visual", "nothing")

_TYPES: dict[str, type | tuple[type, ...]] = {
    "value_head_dim": int,
    "cross_attention": bool,
    "temperature": (int, float),
    "backbone_options": dict,
    "noise_band": (list, tuple, NoneType),
    "level_in_prompt": bool,
    "calibration": (dict, NoneType),
}
"""Expected types of the fields that are not strings."""

_OF_BANDS = ("noise_band", "level_in_prompt", "calibration")
"""Fields of adapters for noise bands alone."""


@dataclass(frozen=True, kw_only=True)
class LlavaRewardConfig:
    """Settings of one dimension of LLaVA-Reward: everything that its weights do not say.

    Attributes:
        dimension: what it judges ("alignment"), also the name of its adapter: letters, digits, "-" and "_". Of an
            adapter for a band of the noise level with the band's name behind an "@" ("alignment@0.5").
        backbone: `model_type` of the backbone ("phi3_v", "qwen2_5_vl", "llava_next").
        base_model: hub id or folder of the backbone that it was trained on.
        objective: "bradley-terry" (a scalar), "binary" (the logit of a yes) or "general-preference" (a vector).
        value_head_dim: size of the raw output; even for general preferences, otherwise 1.
        cross_attention: whether there is a SkipCA between the backbone and the value head.
        attends_to: what SkipCA sees: the "visual" tokens; or "nothing", which reproduces the official Qwen2.5-VL
            rewards, whose SkipCA selects padding instead of the image.
        temperature: divisor of reward differences and preference forms in the training loss, positive.
        backbone_options: preprocessing that it was trained with, by the names of the backbone's options.
        noise_band: [low, high) of the noise levels whose predictions it judges; None for finished images.
        level_in_prompt: whether the noise level stands before the prompt that it reads, as `prompt_at_level` writes it.
        calibration: `scale` and `offset` that bring its scores into the unit of finished images; None where it has
            none yet.

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
    noise_band: tuple[float, float] | None = None
    level_in_prompt: bool = False
    calibration: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if not re.fullmatch(r"[\w-]+(@[\w.-]+)?", self.dimension, re.ASCII):
            raise ValueError(
                f"dimension may have letters, digits, '-' and '_', and a noise band behind an '@', got "
                f"{self.dimension!r}."
            )
        if self.noise_band is not None:  # JSON has lists
            object.__setattr__(self, "noise_band", tuple(self.noise_band))
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
        self._check_band()

    @property
    def band(self) -> NoiseBand | None:
        """The interval of noise levels under the name behind the "@"; None for an adapter for finished images."""
        if self.noise_band is None:
            return None
        return NoiseBand(*self.noise_band, name=self.dimension.partition("@")[2])

    @property
    def judged(self) -> str:
        """What it judges, without the band: "alignment" of "alignment@0.5"."""
        return self.dimension.partition("@")[0]

    def calibrated(self, scores: Tensor) -> Tensor:
        """Scores in the unit of finished images, where there is a calibration."""
        return scores if self.calibration is None else Calibration(**self.calibration)(scores)

    def _check_band(self) -> None:
        named = "@" in self.dimension
        if named != (self.noise_band is not None):
            raise ValueError(
                f"An adapter for a noise band has a noise_band, [low, high), and a name with an '@', such as "
                f"alignment@0.5; got dimension={self.dimension!r} and noise_band={self.noise_band}."
            )
        if self.noise_band is None:
            for name, value in (("level_in_prompt", self.level_in_prompt), ("calibration", self.calibration)):
                if value:
                    raise ValueError(f"{name} is a setting of an adapter for a noise band; {self.dimension!r} is none.")
            return
        if len(self.noise_band) != 2:
            raise ValueError(f"noise_band should be [low, high], got {self.noise_band}.")
        if find_objective(self.objective).compares_images:
            raise ValueError(f"An adapter for a noise band scores each image by itself, {self.objective!r} does not.")
        NoiseBand(*self.noise_band)
        if self.calibration is None:
            return
        if set(self.calibration) != {"scale", "offset"}:
            raise ValueError(f"calibration should have scale and offset, got {self.calibration}.")
        Calibration(**self.calibration)

    def to_dict(self) -> dict[str, Any]:
        """All fields by their names; those of noise bands only where there is one, as files had them before."""
        fields = asdict(self)
        return fields if self.noise_band is not None else {k: v for k, v in fields.items() if k not in _OF_BANDS}

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
