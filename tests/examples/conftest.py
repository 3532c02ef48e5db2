"""The tiny pipeline of the shapes benchmark."""

from __future__ import annotations

from tests.benchmarks.conftest import offline, pipe

__all__ = ["offline", "pipe"]
