"""What a search asks of its reward, checked before anything is drawn."""

from __future__ import annotations

import math

from fk_reward.rewards import Reward
from fk_reward.search.base import SearchConfig
from fk_reward.search.moves import MovingSearch

_ACROSS_LEVELS = ("difference", "max", "sum")
"""Potentials in which rewards of one scoring step meet those of another."""
_SETTINGS = ("potential", "threshold", "stop_reward")
"""Fields of a config that can compare rewards of different steps, or with a number."""


def require_reward(config: SearchConfig, reward: Reward) -> None:
    """Refuse a reward that a search cannot use.

    Raises:
        ValueError: as `require_gradients` and `require_calibrated`.
    """
    if isinstance(config, MovingSearch):
        require_gradients(config, reward)
    require_calibrated(config, reward)


def require_calibrated(config: SearchConfig, reward: Reward) -> None:
    """Refuse judges of noise bands that are in no common unit, for a search that compares rewards across steps.

    Raises:
        ValueError: for a potential that does so, or a threshold that rewards of several steps have to pass.
    """
    uncalibrated = reward.uncalibrated
    setting = next((name for name in _SETTINGS if _compares(getattr(config, name, None))), None)
    if uncalibrated and setting is not None:
        raise ValueError(
            f"{type(config).__name__} with {setting}={getattr(config, setting)!r} compares rewards of different noise "
            f"levels, and {', '.join(uncalibrated)} of {reward.card.name!r} {_HAVE[len(uncalibrated) > 1]} no "
            "calibration, which would bring them into one unit: finish the training (fk-reward train calibrates at its "
            "end), or use potential='immediate', or a search that compares within a step, such as pruning."
        )


_HAVE = ("has", "have")


def _compares(value: object) -> bool:
    return value in (*_ACROSS_LEVELS, "best", "parent") or (isinstance(value, int | float) and math.isfinite(value))


def require_gradients(config: MovingSearch, reward: Reward) -> None:
    """Refuse a reward that a search cannot follow.

    Raises:
        ValueError: where the search follows gradients and the card of the reward says that it has none, or the reward
            compares the images of a prompt, whose preferences sum to nothing.
    """
    if not config.needs_gradients or (reward.card.differentiable and not reward.compares_images):
        return
    why = "compares the images of a prompt" if reward.compares_images else "is not differentiable, as its card says"
    raise ValueError(
        f"{type(config).__name__} follows the gradient of the reward, and {reward.card.name!r} {why}: use a "
        "differentiable one (`fk-reward rewards` lists them; one of your own is a Reward whose card says "
        "differentiable=True), or search='fk'."
    )
