"""What we recommend: a search for one image, for one under an SDE solver, for several, and for a hard constraint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fk_reward.search.base import Population, SearchConfig, forecast
from fk_reward.search.budget import Budgeted, largest_within, resized
from fk_reward.search.diversity import DIVERSE
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.search.pruning import Pruning
from fk_reward.search.tree import TreeSearch
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from torch import Generator

AUTO, ONE, BRANCHING, SEVERAL, CONSTRAINT = "auto", "one", "branching", "several", "constraint"

RECOMMENDED: Mapping[str, SearchConfig] = MappingProxyType(
    {
        # many starts and late cuts: what is dropped costs half of an image, and nothing is copied
        ONE: Pruning(num_particles=12, keep=(7, 4), at=(0.4, 0.55)),
        # the first half of a trajectory decides little there: it is drawn once, for all branches
        BRANCHING: TreeSearch(num_branches=12, branch_at=0.45, keep=(2,), at=(0.7,)),
        # one cut leaves enough images to choose a group from, all of them from starts of their own
        SEVERAL: Pruning(num_particles=12, keep=(8,), at=(0.5,), selection=DIVERSE),
        # all images have to meet it: a population from the target; weights rise, as early predictions say little
        CONSTRAINT: FKSteeringConfig(
            num_particles=8,
            potential="difference",
            reward_weight="rising",
            reward_scale="card",
            resample_start=0.3,
            resample_stop=0.9,
            num_resamples=4,
            abstain=True,
        ),
    }
)
"""Situation -> the search. The settings stand here and nowhere else."""

ONE_PRESET, BRANCHING_PRESET, SEVERAL_PRESET, CONSTRAINT_PRESET = (
    RECOMMENDED[name] for name in (ONE, BRANCHING, SEVERAL, CONSTRAINT)
)
"""What `"recommended-one"`, `"recommended-branching"` and so on name."""

_SPARE = 2
"""Of several images, so many finished ones for each that is returned: a group needs something to be chosen from."""


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """The search that we recommend for a situation.

    A call chooses by `num_images_per_prompt` whether one image is wanted or several, and by the scheduler whether one
    image is searched for by pruning or by a tree; a hard constraint (a reward that gives -inf to images that must not
    be returned) cannot be seen before images are scored, and so has to be said. What was chosen stands in the trace.
    Fields of the chosen search can be keywords of the call beside it, but for `num_particles`, which means the same
    whatever is chosen.

    Attributes:
        situation: `"auto"`, one of the next three, by the call; `"one"`; `"branching"`, one under a scheduler whose
            early steps decide little; `"several"`, images that differ; or `"constraint"`, a population of which every
            image has to meet a hard constraint, and which abstains where none does.
        num_particles: candidates of a prompt: starts of a pruning, branches of a tree, particles of FK steering; of
            them as large a part is kept as is recommended. At least 1; None for the recommended number.

    Example:
        >>> Recommended().for_call(1).keep, Recommended(num_particles=6).for_call(1).keep
        ((7, 4), (4, 2))
        >>> Recommended().for_call(3).selection, Recommended(situation="constraint").for_call(1).abstain
        ('diverse', True)
    """

    default_eta: ClassVar[float | None] = None
    set_by_budget: ClassVar[tuple[str, ...]] = ("num_particles",)

    situation: str = AUTO
    num_particles: int | None = None

    def __post_init__(self) -> None:
        if self.situation not in (AUTO, *RECOMMENDED):
            raise ValueError(f"situation should be one of {[AUTO, *RECOMMENDED]}, got {self.situation!r}.")
        if self.num_particles is not None:
            vars(self)["num_particles"] = whole_number("num_particles", self.num_particles, minimum=1)

    def for_call(self, num_images: int, scheduler: Any = None) -> SearchConfig:
        """The search of a call.

        Args:
            num_images: of a prompt that are returned. Where the recommended sizes finish too few, they are multiplied;
                a number of candidates that was asked for is not.
            scheduler: of the pipeline, if known.

        Example:
            >>> from diffusers import DPMSolverMultistepScheduler
            >>> scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)
            >>> Recommended().for_call(1, scheduler).branch_at
            0.45
        """
        situation = self._situation(num_images, scheduler)
        config = RECOMMENDED[situation]
        if self.num_particles is not None:
            return _with_candidates(config, self.num_particles)
        wanted = num_images * (_SPARE if situation == SEVERAL else 1)
        factor = -(-wanted // forecast(config, 1000).finished)
        return config if factor <= 1 else resized(config, factor * config.num_particles)

    def explain(self, num_images: int, scheduler: Any = None) -> str:
        """What is chosen for a call, why, and the names by which each search can be had in every call.

        Args:
            num_images: as of `for_call`.
            scheduler: as of `for_call`.

        Example:
            >>> print(Recommended().explain(2))
            search='recommended' chose Pruning, as 2 images are wanted. Name a search to have it in every call: \
search='recommended-several' is this one, 'recommended-one' (Pruning), 'recommended-branching' (TreeSearch) and \
'recommended-constraint' (FKSteeringConfig) are the others.
        """
        chosen, kinds = self._situation(num_images, scheduler), {n: type(c).__name__ for n, c in RECOMMENDED.items()}
        wanted = "one image is" if num_images == 1 else f"{num_images} images are"
        why = f"{wanted} wanted" if self.situation == AUTO else f"situation={chosen!r} says"
        if self.situation == AUTO and num_images == 1:
            why += f" under {_described(scheduler)}"
        *most, last = (f"'recommended-{name}' ({kind})" for name, kind in kinds.items() if name != chosen)
        return (
            f"search='recommended' chose {kinds[chosen]}, as {why}. Name a search to have it in every call: "
            f"search='recommended-{chosen}' is this one, {', '.join(most)} and {last} are the others."
        )

    def _situation(self, num_images: int, scheduler: Any) -> str:
        if self.situation != AUTO:
            return self.situation
        if num_images > 1:
            return SEVERAL
        return BRANCHING if decides_late(scheduler) else ONE

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> Population:
        """That of the search for a single image."""
        return self.for_call(1).population(num_groups, generators, spread=spread)

    def within_budget(self, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
        """The search for a single image that a budget pays for."""
        chosen: Any = self.for_call(1)
        if isinstance(chosen, Budgeted):
            return chosen.within_budget(price, budget)
        return largest_within(functools.partial(resized, chosen), price, budget)


def _with_candidates(config: SearchConfig, number: int) -> SearchConfig:
    """A tree begins with a trunk, and its candidates are its branches; of all others they are the particles."""
    return config.with_candidates(number) if isinstance(config, TreeSearch) else resized(config, number)


def _described(scheduler: Any) -> str:
    if scheduler is None:
        return "a scheduler that is not known"
    name = type(scheduler).__name__
    late = "with sde-dpmsolver++ on Karras levels, whose early steps decide little"
    return f"{name} {late}" if decides_late(scheduler) else name


def decides_late(scheduler: Any) -> bool:
    """Whether the first half of a trajectory decides little of its image: of SDE-DPM-Solver++ on Karras levels.

    There .09 to .14 of the variance of a reward within a prompt is decided after 10 of 20 steps, of DDIM with eta 1 .39
    to .55 (the model of shapes, four rewards, `docs/searches.md`). Of other schedulers nothing was measured: the answer
    is no.

    Args:
        scheduler: a Diffusers scheduler, a `Solver`, which has its settings, or None.
    """
    config = getattr(scheduler, "config", {})
    return config.get("algorithm_type") == "sde-dpmsolver++" and bool(config.get("use_karras_sigmas"))
