"""Names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attributes(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package (PEP 562).

    Args:
        package: `__name__` of the package; it has an `__all__`.
        modules: public name -> the submodule that has it.

    Example:
        >>> get, _ = attributes("fk_reward", {"FKSteeringConfig": "search.feynman_kac"})
        >>> get("FKSteeringConfig").__name__
        'FKSteeringConfig'
        >>> get("FKSteering")
        Traceback (most recent call last):
        AttributeError: module 'fk_reward' has no attribute 'FKSteering'
    """
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Kept in the namespace: Python calls `__getattr__` only for names that are not there.
        namespace[name] = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        return namespace[name]

    def names() -> list[str]:
        return sorted({*namespace, *namespace["__all__"]})

    return get, names
