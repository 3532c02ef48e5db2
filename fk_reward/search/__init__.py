"""Search algorithms: who goes on. One file each; `SEARCHES` has all of them by name."""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.search.base import ChosenByCall, Forecast, PlainPopulation, Population, SearchConfig
    from fk_reward.search.beam import BeamSearch
    from fk_reward.search.best_of_n import BestOfN
    from fk_reward.search.budget import Budgeted, fit_budget, sample_steps
    from fk_reward.search.diversity import diverse_group
    from fk_reward.search.draft_refine import DraftRefine
    from fk_reward.search.feynman_kac import FKPopulation, FKSteeringConfig
    from fk_reward.search.gradient_fk import GradientFKConfig
    from fk_reward.search.moves import BeforeStep, Drawn, Move, Moved, MovingSearch, Transition
    from fk_reward.search.noise_search import NoiseSearch
    from fk_reward.search.particle_metropolis import ParticleMetropolis
    from fk_reward.search.pruning import Pruning
    from fk_reward.search.recommended import RECOMMENDED, Recommended
    from fk_reward.search.registry import SEARCHES, SearchLoadError, load_search, search_class, search_fields
    from fk_reward.search.restart import Restart
    from fk_reward.search.rollover import Proposing, RolloverBudget
    from fk_reward.search.starts import Passes, Rollout, Scored, StartSearch
    from fk_reward.search.svdd import SVDD
    from fk_reward.search.tree import TreeSearch

_MODULES = {
    **dict.fromkeys(("ChosenByCall", "Forecast", "PlainPopulation", "Population", "SearchConfig"), "base"),
    **dict.fromkeys(("SEARCHES", "SearchLoadError", "load_search", "search_class", "search_fields"), "registry"),
    **dict.fromkeys(("Passes", "Rollout", "Scored", "StartSearch"), "starts"),
    **dict.fromkeys(("Budgeted", "fit_budget", "sample_steps"), "budget"),
    "BeamSearch": "beam",
    "BestOfN": "best_of_n",
    "diverse_group": "diversity",
    "DraftRefine": "draft_refine",
    "GradientFKConfig": "gradient_fk",
    **dict.fromkeys(("BeforeStep", "Drawn", "Move", "Moved", "MovingSearch", "Transition"), "moves"),
    "NoiseSearch": "noise_search",
    "ParticleMetropolis": "particle_metropolis",
    "Pruning": "pruning",
    **dict.fromkeys(("RECOMMENDED", "Recommended"), "recommended"),
    "Restart": "restart",
    **dict.fromkeys(("Proposing", "RolloverBudget"), "rollover"),
    "SVDD": "svdd",
    "TreeSearch": "tree",
    **dict.fromkeys(("FKPopulation", "FKSteeringConfig"), "feynman_kac"),
}

__all__ = [
    "RECOMMENDED",
    "SEARCHES",
    "SVDD",
    "BeamSearch",
    "BeforeStep",
    "BestOfN",
    "Budgeted",
    "ChosenByCall",
    "DraftRefine",
    "Drawn",
    "FKPopulation",
    "FKSteeringConfig",
    "Forecast",
    "GradientFKConfig",
    "Move",
    "Moved",
    "MovingSearch",
    "NoiseSearch",
    "ParticleMetropolis",
    "Passes",
    "PlainPopulation",
    "Population",
    "Proposing",
    "Pruning",
    "Recommended",
    "Restart",
    "RolloverBudget",
    "Rollout",
    "Scored",
    "SearchConfig",
    "SearchLoadError",
    "StartSearch",
    "Transition",
    "TreeSearch",
    "diverse_group",
    "fit_budget",
    "load_search",
    "sample_steps",
    "search_class",
    "search_fields",
]

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
