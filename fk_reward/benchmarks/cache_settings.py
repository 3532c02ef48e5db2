"""Settings of caching schedules that evolve and are compared; their fields are options of `fk-reward cache`."""

from __future__ import annotations

from dataclasses import dataclass

from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.value_checks import whole_number

DEFAULT_STEPS = 20
"""Of a call where neither a solver nor the user says how many: those of ECAD's schedules."""


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """How long and how broadly is searched.

    Attributes:
        num_generations: generations, the first one of known schedules; more may be asked for later on.
        population_size: schedules that survive a generation, and children of the next one.
        evolution_seed: of crossover, mutation and selection.

    Raises:
        ValueError: for a number that is too small.
    """

    num_generations: int = 20
    population_size: int = 24
    evolution_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot evolve."""
        whole_number("num_generations", self.num_generations, minimum=1)
        whole_number("population_size", self.population_size, minimum=4)
        whole_number("evolution_seed", self.evolution_seed, minimum=0)


@dataclass(frozen=True, kw_only=True)
class CachedDrawing:
    """What is drawn by a schedule.

    Attributes:
        model: text-to-image model: shapes-sd (in the package), sd-2.1, sdxl, a hub id or a folder.
        reward: reward of fk-reward rewards, or a composition of them.
        solver: scheduler, steps and guidance of a published recipe; None for the model's own scheduler.
        num_inference_steps: scheduler steps, those of the schedules; the solver's, or 20, if not given.
        guidance_scale: classifier-free guidance; the solver's, 3 for shapes-sd, or the pipeline's own, if not given.
        eta: noise of each step, of schedulers that take it; 1 for schedules that steered calls will use.
        height: of the images in pixels; the model's own if not given.
        width: the same.
        num_images: images of a prompt; those of a schedule start from the same noise as those of the others.
        seed: of the noise.
        batch_prompts: prompts that are drawn in one call.

    Raises:
        ValueError: for a number that is too small.
    """

    model: str = "shapes-sd"
    reward: str = DEFAULT_EMBEDDED_REWARD
    solver: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    height: int | None = None
    width: int | None = None
    num_images: int = 2
    seed: int = 0
    batch_prompts: int = 8

    def __post_init__(self) -> None:
        """Refuse empty drawings."""
        steps = () if self.num_inference_steps is None else ("num_inference_steps",)
        for name in (*steps, "num_images", "batch_prompts"):
            whole_number(name, getattr(self, name), minimum=1)

    @property
    def typed_steps(self) -> int | None:
        """Steps of a call; None for those of the solver."""
        return DEFAULT_STEPS if self.num_inference_steps is None and self.solver is None else self.num_inference_steps
