"""The table of all searches: one dict for those of the package, an entry-point group for those of other packages."""

from __future__ import annotations

from dataclasses import Field, asdict, fields, is_dataclass, replace
from typing import Any

from fk_reward.documents import plain
from fk_reward.registration import LoadedMapping, Registrations
from fk_reward.search.base import SearchConfig, for_one_image
from fk_reward.search.contract import make_population
from fk_reward.text import did_you_mean

ENTRY_POINT_GROUP = "fk_reward.searches"
"""Entry-point group in which other packages register a search: a config class, or a config as a preset."""

BUILT_IN: dict[str, str] = {
    "beam": "fk_reward.search.beam:BeamSearch",
    "best-of-n": "fk_reward.search.best_of_n:BestOfN",
    "draft-refine": "fk_reward.search.draft_refine:DraftRefine",
    "fk": "fk_reward.search.feynman_kac:FKSteeringConfig",
    "fk-gradient": "fk_reward.search.gradient_fk:GradientFKConfig",
    "fk-paper": "fk_reward.search.feynman_kac:PAPER",
    "noise-search": "fk_reward.search.noise_search:NoiseSearch",
    "particle-metropolis": "fk_reward.search.particle_metropolis:ParticleMetropolis",
    "pruning": "fk_reward.search.pruning:Pruning",
    "recommended": "fk_reward.search.recommended:Recommended",
    "recommended-branching": "fk_reward.search.recommended:BRANCHING_PRESET",
    "recommended-constraint": "fk_reward.search.recommended:CONSTRAINT_PRESET",
    "recommended-one": "fk_reward.search.recommended:ONE_PRESET",
    "recommended-several": "fk_reward.search.recommended:SEVERAL_PRESET",
    "restart": "fk_reward.search.restart:Restart",
    "rollover": "fk_reward.search.rollover:RolloverBudget",
    "svdd": "fk_reward.search.svdd:SVDD",
    "tree": "fk_reward.search.tree:TreeSearch",
}
"""Name -> "module:attribute" of a config class, or of a config that is a preset."""


class SearchLoadError(ImportError):
    """A registered search cannot be imported, or what it names is no search."""


_REGISTERED = Registrations(BUILT_IN, ENTRY_POINT_GROUP, ("search", "searches"), SearchLoadError)


class Searches(LoadedMapping[Any]):
    """All searches by name: those of the package and those that other packages register.

    A name is imported when it is read; names are listed without an import, and a registration that is broken raises
    only when its own name is read. The package's own names win, and among others the first, with a warning.

    Example:
        >>> SEARCHES["fk"].__name__
        'FKSteeringConfig'
    """

    def checked(self, found: Any, described: str) -> Any:
        """A config class, or the config of a preset.

        Raises:
            SearchLoadError: anything else.
        """
        if not is_dataclass(found) or not callable(getattr(found, "population", None)):
            raise SearchLoadError(
                f"{described} should be a dataclass with a method `population`, or an instance of one, got "
                f"{getattr(found, '__name__', type(found).__name__)}."
            )
        return found


SEARCHES = Searches(_REGISTERED)
"""Name -> config class or preset, read by pipeline, command line and benchmarks."""


def search_class(name: str) -> type[Any]:
    """The config class of a search, also where the name is that of a preset.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
        SearchLoadError: when it cannot be imported, or is no search.

    Example:
        >>> search_class("fk-paper").__name__
        'FKSteeringConfig'
    """
    found = _known(name)
    return found if isinstance(found, type) else type(found)


def search_fields(search: str | SearchConfig | type[Any]) -> dict[str, Field[Any]]:
    """The settings of a search: those fields of its config class that its constructor takes, by name.

    Args:
        search: a name of `SEARCHES`, a config, or its class.

    Example:
        >>> search_fields("fk")["num_particles"].default
        4
    """
    kind: Any = search_class(search) if isinstance(search, str) else search
    return {field.name: field for field in fields(kind) if field.init}


def search_name(config: SearchConfig) -> str:
    """The name under which the class of a config is registered; of any other its own name.

    Example:
        >>> from fk_reward.search import FKSteeringConfig
        >>> search_name(FKSteeringConfig(num_particles=8))
        'fk'
    """
    kind = type(config)
    place = f"{kind.__module__}:{kind.__qualname__}"
    own = [name for name, value in BUILT_IN.items() if value == place]
    if own:  # every trace asks, and the entry points of all installed packages are read from disk
        return own[0]
    found = (name for name, entry_point in _REGISTERED.entry_points().items() if entry_point.value == place)
    return next(found, kind.__name__)


def settings_of(config: SearchConfig) -> dict[str, Any]:
    """The settings of a config as plain data, for the trace: its own `to_dict`, or its fields.

    Example:
        >>> from fk_reward.search import Pruning
        >>> settings_of(Pruning())["keep"]
        [7, 4]
    """
    own = getattr(config, "to_dict", None)
    values: dict[str, Any] = own() if callable(own) else asdict(config)  # type: ignore[call-overload]
    return {name: plain(value) for name, value in values.items()}


def search_config(search: str | SearchConfig, **settings: Any) -> Any:
    """The config of a search, with some of its fields replaced, as `load_search`, but without trying what it makes.

    The command line reads its options so, before PyTorch is imported.

    Args:
        search: a name of `SEARCHES`, or a config.
        **settings: fields of its config.

    Raises:
        ValueError: for an unknown name, or a value that the search refuses.
        TypeError: for an unknown field, or anything that is no search.

    Example:
        >>> search_config("fk", num_particles=8).num_particles
        8
    """
    found = _known(search) if isinstance(search, str) else search
    kind = found if isinstance(found, type) else type(found)
    if not is_dataclass(found) or not callable(getattr(found, "population", None)):
        raise TypeError(
            f"search should be a name ({', '.join(SEARCHES)}) or a config such as Pruning(), got {kind.__name__}."
        )
    if isinstance(found, type) and not isinstance(search, str):
        raise TypeError(f"search should be a config, got the class {kind.__name__}: write {kind.__name__}(...).")
    known = search_fields(kind)
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known)
            raise TypeError(f"{name!r} is no setting of {kind.__name__}.{hint} Its settings: {', '.join(known)}.")
    return found(**settings) if isinstance(found, type) else replace(found, **settings)  # type: ignore[type-var]


def load_search(search: str | SearchConfig, **settings: Any) -> SearchConfig:
    """The config of a search, with some of its fields replaced.

    Args:
        search: a name of `SEARCHES`, or a config.
        **settings: fields of its config.

    Raises:
        ValueError: for an unknown name; the message lists the known ones. For a value that the search refuses.
        TypeError: for an unknown field, with close ones; for anything that is no search, or makes no population.
        SearchLoadError: when a registered search cannot be imported.

    Example:
        >>> load_search("fk", num_particles=8).num_particles
        8
        >>> load_search("fk", num_particle=8)
        Traceback (most recent call last):
        TypeError: 'num_particle' is no setting of FKSteeringConfig. Did you mean 'num_particles', ...
    """
    made = search_config(search, **settings)
    kind = type(made)
    if missing := [name for name in ("num_particles", "default_eta") if not hasattr(made, name)]:
        raise TypeError(f"{kind.__name__} is no search: it has no {' and no '.join(missing)}.")
    # what it makes, or what it chooses for a single image, is known before anything is spent on a call
    make_population(for_one_image(made))
    return made  # type: ignore[no-any-return]


def _known(name: str) -> Any:
    if name not in SEARCHES:
        hint = did_you_mean(name.lower().replace("_", "-"), SEARCHES, limit=1)
        raise ValueError(f"Unknown search {name!r}.{hint} Known searches: {', '.join(sorted(SEARCHES))}.")
    return SEARCHES[name]
