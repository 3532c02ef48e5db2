"""Search algorithms: who goes on. One file each; `SEARCHES` has all of them by name."""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.search.base import Forecast, PlainPopulation, Population, Rollout, Scored, SearchConfig
    from fk_reward.search.feynman_kac import FKPopulation, FKSteeringConfig
    from fk_reward.search.registry import SEARCHES, SearchLoadError, load_search, search_class, search_fields

_MODULES = {
    **dict.fromkeys(("Forecast", "PlainPopulation", "Population", "Rollout", "Scored", "SearchConfig"), "base"),
    **dict.fromkeys(("SEARCHES", "SearchLoadError", "load_search", "search_class", "search_fields"), "registry"),
    **dict.fromkeys(("FKPopulation", "FKSteeringConfig"), "feynman_kac"),
}

__all__ = [
    "SEARCHES",
    "FKPopulation",
    "FKSteeringConfig",
    "Forecast",
    "PlainPopulation",
    "Population",
    "Rollout",
    "Scored",
    "SearchConfig",
    "SearchLoadError",
    "load_search",
    "search_class",
    "search_fields",
]

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
