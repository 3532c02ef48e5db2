"""What a run depends on, as a person chose it: model, method, reward, sampler, seeds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from fk_reward.search.feynman_kac import FKSteeringConfig

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
