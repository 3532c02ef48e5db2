"""Which runs a person asks for: methods, rewards and K, over the settings of a suite and perhaps of a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from fk_reward.benchmarks.geneval.presets import Preset
from fk_reward.benchmarks.geneval.run_settings import METHODS, UNSTEERED, RunSettings
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.search.feynman_kac import FKSteeringConfig, config_fields

SUITE_DEFAULTS: dict[str, dict[str, Any]] = {
    "official": {"model": "sd-2.1", "num_steps": 50, "num_samples": 4},
    "shapes": {
        "model": "shapes-sd",
        "rewards": (DEFAULT_EMBEDDED_REWARD,),
        "num_steps": 50,
        "num_samples": 4,
        "guidance_scale": 3.0,
    },
}
"""Name of a suite -> what holds for it unless a preset or a person says otherwise."""

ROWS = 16
"""Particles in one call, unless a sample has more."""


def plan_runs(
    suite: str, *, methods: Sequence[str] = METHODS, preset: Preset | None = None, typed: Mapping[str, Any]
) -> list[RunSettings]:
    """The runs: each method, and those with a reward for each reward and K.

    Args:
        suite: name of the suite.
        methods: of `METHODS`.
        preset: settings of a paper.
        typed: what a person has set, which goes before the preset and the suite's defaults: fields of `RunSettings`
            and of `FKSteeringConfig`; `rewards`, names; `num_particles`, several K.

    Returns:
        Unsteered first, then by K.

    Raises:
        ValueError: settings that do not go together, or no reward.

    Example:
        >>> [run.name for run in plan_runs("shapes", typed={"num_particles": (2, 4), "rewards": ("clipscore",)})]
        ['unsteered', 'best-of-2-clipscore', 'fk-2-clipscore', 'best-of-4-clipscore', 'fk-4-clipscore']
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"method should be one of {', '.join(METHODS)}, got {unknown[0]!r}.")
    steering = (FKSteeringConfig() if preset is None else preset.steering).to_dict()
    options: dict[str, Any] = {"rewards": (), "num_particles": (steering.pop("num_particles"),), "batch_size": ROWS}
    options |= {**SUITE_DEFAULTS[suite], **_preset_options(preset), **typed}
    steering |= {name: options.pop(name) for name in config_fields() if name in options and name != "num_particles"}
    rewards, sizes, rows = (options.pop(name) for name in ("rewards", "num_particles", "batch_size"))
    steered = [method for method in METHODS if method in methods and method != UNSTEERED]
    if steered and not rewards:
        raise ValueError(f"Name a reward (--reward) for {', '.join(steered)}.")
    single = FKSteeringConfig(**steering, num_particles=1)
    runs = [RunSettings(suite=suite, method=UNSTEERED, steering=single, batch_size=rows, **options)]
    for size in sorted(sizes):
        shared: dict[str, Any] = {"steering": replace(single, num_particles=size), "batch_size": max(rows, size)}
        runs += [replace(runs[0], method=method, reward=name, **shared) for name in rewards for method in steered]
    return runs if UNSTEERED in methods else runs[1:]


def _preset_options(preset: Preset | None) -> dict[str, Any]:
    if preset is None:
        return {}
    names = ("model", "num_steps", "scheduler", "num_samples")
    return {"rewards": (preset.reward,), **{name: getattr(preset, name) for name in names}}


def describe_preset(name: str, preset: Preset, typed: Mapping[str, Any]) -> dict[str, Any]:
    """A preset for the manifest: its settings, and what a person has set instead."""
    return {"name": name, **asdict(preset), "changed": dict(typed)}
