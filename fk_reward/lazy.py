"""Names of a package, and whole modules, that are imported when they are first used."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from typing import Any


def attributes(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package (PEP 562).

    Args:
        package: `__name__` of the package; it has an `__all__`.
        modules: public name -> the submodule that has it; one more dot before it for a sibling of the package.

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
        namespace[name] = getattr(importlib.import_module(f".{modules[name]}", package), name)
        return namespace[name]

    def names() -> list[str]:
        return sorted({*namespace, *namespace["__all__"]})

    return get, names


class _Deferred(types.ModuleType):
    """A module that is imported when one of its names is first asked for.

    `importlib.util.LazyLoader` does not serve: the second `import` statement reads `__spec__`, which makes it load.
    """

    def __getattr__(self, name: str) -> Any:
        _load(self)
        return getattr(self, name)


_LOADING = threading.RLock()


def _load(module: types.ModuleType) -> None:
    """Run the module, once; what it imports may import it in turn."""
    with _LOADING:
        if type(module) is not _Deferred:
            return
        module.__class__ = types.ModuleType  # type: ignore[assignment]
        loader = module.__spec__.loader if module.__spec__ else None
        try:
            loader.exec_module(module)  # type: ignore[union-attr]  # defer_import takes none without a loader
        except BaseException:
            sys.modules.pop(module.__name__, None)
            raise


class _Submodules(importlib.abc.MetaPathFinder):
    """`import torch.fft` of a deferred torch: torch comes first, and has imported torch.fft in most cases."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        module = sys.modules.get(name.partition(".")[0])
        if type(module) is not _Deferred:
            return None
        _load(module)
        found = sys.modules.get(name)
        if found is None:
            return None
        spec = ModuleSpec(name, _Imported(found))
        found.__spec__ = spec  # the import system takes the spec of a module that has appeared, and would run it again
        return spec


class _Imported(importlib.abc.Loader):
    """Hands out a module that is there already, for an import that had begun to look for it."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:  # noqa: ARG002
        return self._module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


def defer_import(name: str) -> None:
    """Make `import name` wait until the first use of one of its names, in the whole process.

    For the start of a program: PyTorch takes seconds, and what is wrong with a command line is known without it.

    Args:
        name: of a top-level module; one that is imported already, or is missing, is left alone.

    Example:
        >>> sys.modules.pop("colorsys", None) and None
        >>> defer_import("colorsys")
        >>> import colorsys
        >>> is_loaded("colorsys"), colorsys.rgb_to_hsv(1.0, 1.0, 1.0), is_loaded("colorsys")
        (False, (0.0, 0.0, 1.0), True)
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    if not any(isinstance(finder, _Submodules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Submodules())
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Deferred
    sys.modules[name] = module


def is_loaded(name: str) -> bool:
    """Whether a module is imported, and not only deferred.

    Example:
        >>> is_loaded("sys")
        True
    """
    return name in sys.modules and type(sys.modules[name]) is not _Deferred
