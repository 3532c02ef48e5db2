"""Three scripted rewards under names."""

from __future__ import annotations

import pytest

from fk_reward.rewards import REWARDS
from tests.rewards.composition.scripted import ENTRIES


@pytest.fixture
def scripted(monkeypatch):
    """`a`, `hps-v2.1` and `safe@q` are known names."""
    for name, entry in ENTRIES.items():
        monkeypatch.setitem(REWARDS, name, entry)
