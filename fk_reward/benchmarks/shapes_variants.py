"""Ways to draw pictures of the shapes world whose accuracy is held against their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fk_reward.benchmarks.shapes import trajectory
from fk_reward.benchmarks.shapes_runs import Population, ShapesSettings, list_populations
from fk_reward.search.feynman_kac import FKSteeringConfig


@dataclass(frozen=True, kw_only=True)
class ShapesVariant:
    """A solver with what is changed of the steering.

    Attributes:
        name: of the variant and of its folder.
        solver: name of the solver.
        num_particles: values of K.
        preview: name of the decoder of the scoring steps; None for the model's own.
        final_particles: how many of the K are finished; None for all.
        guidance_scale: of classifier-free guidance; None for the solver's, or the benchmark's default.
    """

    name: str
    solver: str
    num_particles: tuple[int, ...]
    preview: str | None = None
    final_particles: int | None = None
    guidance_scale: float | None = None

    @property
    def has_plain(self) -> bool:
        """Whether it draws plain pictures: with a preview or a shrinking population they are those of the solver."""
        return self.preview is None and self.final_particles is None


VARIANTS: dict[str, ShapesVariant] = {
    variant.name: variant
    for variant in (
        ShapesVariant(name="ddim-50", solver="ddim-50", num_particles=(2, 4, 8)),
        ShapesVariant(name="ddim-100", solver="ddim-100", num_particles=(2, 4)),
        ShapesVariant(name="sde-dpmsolver++-20", solver="sde-dpmsolver++-20", num_particles=(2, 4, 8, 16)),
        ShapesVariant(name="lcm-8-guided", solver="lcm-8", num_particles=(4, 8), guidance_scale=3.0),
        ShapesVariant(name="ddim-50-preview", solver="ddim-50", num_particles=(4,), preview="shapes-preview"),
        ShapesVariant(
            name="sde-dpmsolver++-20-preview",
            solver="sde-dpmsolver++-20",
            num_particles=(4, 8),
            preview="shapes-preview",
        ),
        ShapesVariant(name="ddim-50-funnel", solver="ddim-50", num_particles=(6, 8), final_particles=2),
        ShapesVariant(
            name="sde-dpmsolver++-20-funnel", solver="sde-dpmsolver++-20", num_particles=(8, 16), final_particles=2
        ),
        ShapesVariant(
            name="sde-dpmsolver++-20-preview-funnel",
            solver="sde-dpmsolver++-20",
            num_particles=(8, 16),
            preview="shapes-preview",
            final_particles=2,
        ),
    )
}
"""What is compared, in the order of the table. Another way to draw is one more row."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What all variants share, so that their results can be paired.

    Attributes:
        model: of the shapes world.
        reward: name of the reward that steers and selects.
        prompts: which prompts, a key of `PROMPT_LISTS`.
        num_prompts: length of the list of prompts.
        seed: the first seed.
        num_seeds: runs of each prompt.
        steps: scheduler steps of every variant; None for those of its solver.
        guidance_scale: of classifier-free guidance, of every variant; None for the variant's.
        steering: settings of the sampler but for the numbers of particles.
    """

    model: str
    reward: str
    prompts: str
    num_prompts: int
    seed: int
    num_seeds: int
    steps: int | None = None
    guidance_scale: float | None = None
    steering: FKSteeringConfig = field(default_factory=FKSteeringConfig)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the numbers of particles are those of the variants."""
        steering = self.steering.to_dict()
        del steering["num_particles"], steering["final_particles"]
        return asdict(self) | {"steering": steering}

    def of_variant(self, variant: ShapesVariant, num_particles: Sequence[int] | None = None) -> ShapesSettings:
        """The settings of the shapes benchmark for one variant.

        Args:
            variant: the variant.
            num_particles: values of K in place of its own.

        Raises:
            ValueError: when fewer particles are begun with than are to be finished.
        """
        sizes = tuple(num_particles or variant.num_particles)
        guidance_scale = variant.guidance_scale if self.guidance_scale is None else self.guidance_scale
        smallest = min((size for size in sizes if size > 1), default=1)
        return ShapesSettings(
            model=self.model,
            rewards=(self.reward,),
            prompts=self.prompts,
            num_prompts=self.num_prompts,
            num_particles=sizes,
            seed=self.seed,
            num_seeds=self.num_seeds,
            steering=replace(self.steering, num_particles=smallest, final_particles=variant.final_particles),
            preview=variant.preview,
            **trajectory(variant.solver, self.steps, guidance_scale),
        )


def variant_populations(variant: ShapesVariant, settings: ShapesSettings) -> list[Population]:
    """What a variant has to draw: of `list_populations` those that give pictures which no other population gives.

    Left out are plain pictures that another variant draws, and steered ones that are never resampled, which are the
    plain ones again: the effective sample size of K particles is at least 1, so that a threshold of 1/K or less (K = 2
    with the default of 0.5) never asks for it.

    Example:
        >>> sweep = SweepSettings(model="shapes-sd", reward="x", prompts="sign", num_prompts=1, seed=0, num_seeds=1)
        >>> variant = VARIANTS["ddim-50"]
        >>> [p.num_particles for p in variant_populations(variant, sweep.of_variant(variant))]
        [8, 4, 8]
    """

    def is_needed(population: Population) -> bool:
        if population.reward is None:
            return variant.has_plain
        size = population.num_particles
        return (variant.final_particles or size) < size or settings.steering.ess_threshold * size > 1.0

    return [population for population in list_populations(settings) if is_needed(population)]
