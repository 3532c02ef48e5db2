"""Pages of the API reference, one a package, for Sphinx: every public name, from its docstring.

`docs/conf.py` calls this before each build; the pages are not kept in the repository.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

PACKAGES = (
    "fk_reward",
    "fk_reward.pipelines",
    "fk_reward.search",
    "fk_reward.search.replay",
    "fk_reward.rewards",
    "fk_reward.rewards.doctor",
    "fk_reward.rewards.llava_reward",
    "fk_reward.rewards.vlm_judge",
    "fk_reward.rewards.workers",
    "fk_reward.planning",
    "fk_reward.training",
    "fk_reward.training.skills",
)
"""Packages whose `__all__` is promised to users."""


def write_reference(folder: Path) -> list[Path]:
    """Write a page for each package, and an index.

    Args:
        folder: of the pages; other files in it are left alone.

    Returns:
        The pages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for name in PACKAGES:
        pages.append(folder / f"{name}.md")
        _write(pages[-1], package_page(importlib.import_module(name)))
    names = "\n".join(PACKAGES)
    _write(folder / "index.md", f"# Reference\n\nEvery public name.\n\n```{{toctree}}\n:maxdepth: 2\n\n{names}\n```\n")
    return [folder / "index.md", *pages]


def package_page(package: ModuleType) -> str:
    """The page of a package: a heading for each public name, and what Sphinx makes of its docstring."""
    summary = (inspect.getdoc(package) or "").partition("\n\n")[0]
    parts = [f"# `{package.__name__}`", summary]
    parts += [_entry(package, name) for name in package.__all__ if name != "__version__"]
    return "\n\n".join(parts) + "\n"


def _entry(package: ModuleType, name: str) -> str:
    value = getattr(package, name)
    place = f"{package.__name__}.{name}"
    if inspect.isclass(value):
        # a name that several packages export is described where it is first exported, and named in the others
        options = "\n   :members:\n   :special-members: __call__" if _first(place, value) else "\n   :no-index:"
        directive = f".. autoclass:: {place}{options}"
    elif inspect.isroutine(value):
        directive = f".. autofunction:: {place}" + ("" if _first(place, value) else "\n   :no-index:")
    else:
        directive = f".. autodata:: {place}\n   :no-value:" + ("" if _first(place, value) else "\n   :no-index:")
    return f"## `{name}`\n\n```{{eval-rst}}\n{directive}\n```"


def _first(place: str, value: object) -> bool:
    owners = (f"{name}.{place.rpartition('.')[2]}" for name in PACKAGES if _exports(name, place, value))
    return next(owners, place) == place


def _exports(package: str, place: str, value: object) -> bool:
    module = importlib.import_module(package)
    name = place.rpartition(".")[2]
    return name in module.__all__ and getattr(module, name) is value


def _write(path: Path, text: str) -> None:
    """Only what has changed, so that Sphinx reads no page twice."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
