"""A runner of command lines, and no process group left behind."""

from __future__ import annotations

import pytest
from accelerate import PartialState

from tests.cli.conftest import refused, run  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def _forget_processes():
    yield
    PartialState._reset_state()
