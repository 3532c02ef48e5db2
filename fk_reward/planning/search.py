"""The settings to use: as little moving of weights as possible, then batches as large as fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fk_reward.planning.memory import LIMITED_PHASES, MemoryModel, Settings


def fitting_settings(
    model: MemoryModel, memory: int | None, *, can_offload_reward: bool, num_scorings: int
) -> Settings | None:
    """The settings under which all phases fit into memory; None where there are none.

    Args:
        model: memory of the call.
        memory: bytes of the GPU; None for no limit.
        can_offload_reward: whether the reward can rest on the CPU.
        num_scorings: how often a call scores; each time with offload, weights are moved.
    """
    whole = Settings(*(model.num_particles,) * 3)
    if memory is None:
        return whole
    for modes in sorted(_modes(can_offload_reward), key=lambda mode: _moved_bytes(model, mode, num_scorings)):
        settings = _largest_batches(model, memory, replace(whole, **modes))
        if settings is not None:
            return settings
    return None


def smallest_settings(*, can_offload_reward: bool) -> Settings:
    """Those that need least: one picture at a time, everything offloaded.

    Example:
        >>> smallest_settings(can_offload_reward=False).model_offload
        True
    """
    return Settings(1, 1, 1, model_offload=True, reward_offload=can_offload_reward)


def _modes(can_offload_reward: bool) -> list[dict[str, bool]]:
    reward = (False, True) if can_offload_reward else (False,)
    return [{"model_offload": first, "reward_offload": second} for first in (False, True) for second in reward]


def _moved_bytes(model: MemoryModel, mode: dict[str, bool], num_scorings: int) -> int:
    """Bytes that come to the GPU in a call: the denoiser again after each scoring, the reward at each."""
    moved = 0
    if mode["model_offload"]:
        num_returns = 1 if model.keeps_denoiser else num_scorings
        moved += model.weights["text"] + model.weights["decoder"] + num_returns * model.weights["denoiser"]
    if mode["reward_offload"]:
        moved += num_scorings * model.weights["reward"]
    return moved


def _largest_batches(model: MemoryModel, memory: int, settings: Settings) -> Settings | None:
    """Phases do not happen at once, so that each setting has its own limit."""
    if model.need("text", settings).needed > memory:
        return None
    for name, limited in LIMITED_PHASES.items():
        phases = [phase for phase in limited if phase in model.phases]
        for size in range(model.num_particles, 0, -1):
            sized: dict[str, Any] = {name: size}
            settings = replace(settings, **sized)
            if all(model.need(phase, settings).needed <= memory for phase in phases):
                break
        else:
            return None
    return settings
