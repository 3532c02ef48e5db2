"""`Plan`: what was asked, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fk_reward.planning.costs import Picture
from fk_reward.planning.memory import PhaseNeed, Settings
from fk_reward.search.base import Forecast, forecast
from fk_reward.search.feynman_kac import FKSteeringConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a steered call of one prompt needs. Bytes are counted from shapes; seconds are an estimate.

    Attributes:
        model: as given.
        reward: as given.
        steering: settings of the sampler.
        picture: height, width and guidance scale, None for the pipeline's own.
        dtype: of the pipeline.
        steps: scheduler steps.
        preview: as given.
        solver: as given.
        memory: bytes of the GPU; None for no limit.
        fits: whether `settings` fit.
        settings: those to use; the smallest ones where nothing fits.
        phases: bytes at the peak of each phase, under these settings.
        weights: bytes of text encoders, denoiser, decoder, other parts of the pipeline, preview, and reward.
        flops: floating-point operations of a call, by dtype; with `stop_reward` at most.
        tflops: 10¹² operations a second, by dtype; empty where nobody gave or measured them.
        seconds: operations over operations a second, None without the latter. Moving weights is not in it, nor is what
            a model loses against plain matrix products.
        advice: what to write or what to change, a sentence each.
    """

    model: str
    reward: str
    steering: FKSteeringConfig
    picture: Picture
    dtype: str
    steps: int
    preview: str | None = None
    solver: str | None = None
    memory: int | None
    fits: bool
    settings: Settings
    phases: tuple[PhaseNeed, ...]
    weights: Mapping[str, int]
    flops: Mapping[str, int]
    tflops: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    advice: tuple[str, ...] = ()

    @property
    def num_particles(self) -> int:
        """K, particles at the beginning."""
        return self.steering.num_particles

    @property
    def population(self) -> Forecast:
        """Particles in the course of the call."""
        return forecast(self.steering, self.steps)

    @property
    def num_scorings(self) -> int:
        """How often pictures are scored: at the scoring steps, and when they are finished."""
        return len(self.population.scorings) + 1

    @property
    def peak(self) -> int:
        """Most bytes that PyTorch's allocator will hold: what `torch.cuda.max_memory_allocated` tells."""
        return max(phase.peak for phase in self.phases)

    @property
    def needed(self) -> int:
        """Bytes that the GPU should have: the peak, the CUDA context, and what the allocator cannot reuse."""
        return max(phase.needed for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        phases = [asdict(phase) | {"peak": phase.peak, "needed": phase.needed} for phase in self.phases]
        derived = {name: getattr(self, name) for name in ("num_particles", "num_scorings", "peak", "needed")}
        return asdict(self) | {"phases": phases, "population": asdict(self.population)} | derived
