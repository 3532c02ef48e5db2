"""Names that are registered: those of the package, and those of other packages by entry point."""

from __future__ import annotations

import functools
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

EntryT = TypeVar("EntryT")


@dataclass(frozen=True)
class Registrations:
    """What is registered under a name, imported only when its own name is used.

    Attributes:
        built_in: name -> "module:attribute", those of the package.
        group: entry-point group in which other packages register theirs.
        noun: what is registered, in the singular and in the plural.
        error: raised where something cannot be imported.
    """

    built_in: Mapping[str, str]
    group: str
    noun: tuple[str, str]
    error: type[ImportError]

    def entry_points(self) -> dict[str, metadata.EntryPoint]:
        """All registrations by name; the package's own win, and among others the first, with a warning."""
        found = {name: metadata.EntryPoint(name, value, self.group) for name, value in self.built_in.items()}
        for entry_point in _read(metadata.entry_points, self.group, _installed()):
            kept = found.setdefault(entry_point.name, entry_point)
            if kept.value != entry_point.value:
                text = "Two %s are called %r: %s is used, %s is not."
                logger.warning(text, self.noun[1], entry_point.name, kept.value, entry_point.value)
        return found

    def describe(self, entry_point: metadata.EntryPoint) -> str:
        """Name, package and place, for messages."""
        owner = f" of package {entry_point.dist.name!r}" if entry_point.dist else ""
        return f"{self.noun[0].capitalize()} {entry_point.name!r}{owner} ({entry_point.value})"

    def load(self, entry_point: metadata.EntryPoint) -> Any:
        """Import what is registered.

        Raises:
            ImportError: `error`, which names the registration, whatever its import raises.
        """
        try:
            return entry_point.load()
        except Exception as error:  # of another package: its import may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise self.error(f"{self.describe(entry_point)} cannot be imported: {reason}") from error


def _installed() -> tuple[tuple[str, tuple[int, int, int] | None], ...]:
    """What the search path holds, so far as an installation changes it: each folder, and when an entry was added."""
    return tuple((folder, _state(folder)) for folder in metadata.DistributionFinder.Context().path)


def _state(folder: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(folder or os.curdir)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _read(
    read: Callable[..., Iterable[metadata.EntryPoint]], group: str, installed: object
) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group, read once for what is installed: a command asks fifty times, each 10 ms of reading.

    The function is part of the key, too, so that another one is asked anew.
    """
    return tuple(read(group=group))


class LoadedMapping(Mapping[str, EntryT]):
    """Registrations as a mapping: a name is imported when it is read, and names are listed without an import.

    Args:
        registered: what is listed.
    """

    def __init__(self, registered: Registrations) -> None:
        self._registered = registered

    @abstractmethod
    def checked(self, found: Any, described: str) -> EntryT:
        """What was imported, if it is of the right kind.

        Args:
            found: what the registration names.
            described: the registration, for a message.

        Raises:
            ImportError: the error of the registrations, for another kind.
        """

    def __getitem__(self, name: str) -> EntryT:
        """What is registered under a name.

        Raises:
            KeyError: for an unknown name.
            ImportError: the error of the registrations, when it cannot be imported, or is of another kind.
        """
        entry_point = self._registered.entry_points()[name]
        return self.checked(self._registered.load(entry_point), self._registered.describe(entry_point))

    def __contains__(self, name: object) -> bool:
        return name in self._registered.entry_points()

    def __iter__(self) -> Iterator[str]:
        return iter(self._registered.entry_points())

    def __len__(self) -> int:
        return len(self._registered.entry_points())
