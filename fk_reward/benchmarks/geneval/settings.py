"""How images of a suite are made: settings of a run, presets of papers, and the runs that are asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.search.feynman_kac import FKSteeringConfig, config_fields

UNSTEERED, BEST, STEERED = "unsteered", "best-of-k", "fk"
METHODS = (UNSTEERED, BEST, STEERED)
SCHEDULERS = ("auto", "ddim")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One way to make the pictures of a suite.

    Attributes:
        suite: name of the suite.
        model: name, hub id or folder of the text-to-image model.
        revision: of the model on the hub; None for the newest.
        method: one of `METHODS`. `best-of-k` draws K independent pictures, `fk` steers K particles; of both the
            picture of the highest reward is kept.
        reward: steers and selects; None if and only if unsteered.
        steering: settings of the sampler, K among them.
        scheduler: `"auto"`, the model's own where it can be steered, else a stochastic one; `"ddim"`, DDIM.
        num_steps: scheduler steps.
        guidance_scale: of classifier-free guidance; None for the pipeline's default.
        num_samples: pictures of each prompt, each from a population of its own.
        seed: of the first sample; sample s is the first one of seed + s.
        batch_size: most particles in one call, the samples of a prompt together.

    Raises:
        ValueError: a setting out of range, or settings that do not go together.

    Example:
        >>> options = {"suite": "shapes", "model": "shapes-sd", "steering": FKSteeringConfig(num_particles=8)}
        >>> run = RunSettings(**options, method="fk", reward="shapes-clipscore", num_steps=50)
        >>> run.name, run.unsteered().name
        ('fk-8-shapes-clipscore', 'unsteered')
    """

    suite: str
    model: str
    method: str
    steering: FKSteeringConfig
    num_steps: int
    reward: str | None = None
    revision: str | None = None
    scheduler: str = "auto"
    guidance_scale: float | None = None
    num_samples: int = 4
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("scheduler", self.scheduler, SCHEDULERS)
        for name in ("num_steps", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed should be at least 0, got {self.seed}.")
        if (self.method == UNSTEERED) != (self.reward is None):
            raise ValueError(f"A reward goes with every method but {UNSTEERED}; got {self.reward!r} for {self.method}.")
        self._check_particles()

    def _check_particles(self) -> None:
        num_particles = self.steering.num_particles
        if (self.method == UNSTEERED) != (num_particles == 1):
            raise ValueError(f"{UNSTEERED} has one particle, other methods more; got {num_particles}: {self.method}.")
        if self.batch_size < num_particles:
            raise ValueError(f"batch_size should hold a sample's {num_particles} particles, got {self.batch_size}.")

    @property
    def name(self) -> str:
        """Name of the run's folder: method, K and reward."""
        if self.reward is None:
            return self.method
        slug = re.sub(r"[^\w.@-]+", "_", self.reward).strip("_")
        if slug != self.reward:  # two compositions may differ in their signs alone
            slug = f"{slug[:60]}-{hashlib.sha256(self.reward.encode()).hexdigest()[:6]}"
        return f"{self.method.removesuffix('-k')}-{self.steering.num_particles}-{slug}"

    def unsteered(self) -> RunSettings:
        """The unsteered run to compare this one with: the first particle of each of its populations."""
        return replace(self, method=UNSTEERED, reward=None, steering=replace(self.steering, num_particles=1))

    @property
    def sampler(self) -> FKSteeringConfig:
        """Settings of the sampler as this method uses them: plain pictures unless steered."""
        if self.method == STEERED:
            return self.steering
        return FKSteeringConfig(num_particles=self.steering.num_particles, num_resamples=0, reward_scale=0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the sampler's settings as this method uses them."""
        return {**asdict(self), "steering": self.sampler.to_dict()}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(choices)}, got {value!r}.")


FK_STEERING = FKSteeringConfig(
    num_particles=4, potential="max", reward_scale=10.0, resample_start=0.2, resample_stop=0.8, num_resamples=4
)
"""Four particles, scored at 20, 40, 60 and 80 of 100 steps."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a paper.

    Attributes:
        source: where they come from, and what the source leaves open.
        model: the first of the models that the paper steers.
        reward: the reward that steers.
        num_steps: scheduler steps.
        scheduler: DDIM, which runs with eta 1.
        num_samples: pictures of a prompt.
        steering: settings of the sampler.
    """

    source: str
    reward: str
    model: str = "sd-2.1"
    num_steps: int = 100
    scheduler: str = "ddim"
    num_samples: int = 4
    steering: FKSteeringConfig = FK_STEERING


PRESETS: dict[str, Preset] = {
    "fk-paper": Preset(
        source="Singhal et al. 2025, arXiv 2501.06848: text-to-image experiments. Four pictures of a prompt, as in "
        "GenEval's own script; resampled where the ESS falls below half of K.",
        reward="imagereward",
    ),
    "llava-reward-paper": Preset(
        source="Zhou et al. 2025, arXiv 2507.21391: inference-time scaling with FK steering's public code. Settings of "
        "the sampler are fk-paper's; lambda 10 is one over the temperature 0.1 that the reward was trained with.",
        reward="llava-reward-alignment",
    ),
}
"""Name -> settings."""


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: unknown; the message lists the names.

    Example:
        >>> preset = find_preset("fk-paper")
        >>> preset.steering.scoring_steps(preset.num_steps), preset.steering.reward_scale, preset.steering.potential
        ((20, 40, 60, 80), 10.0, 'max')
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


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
