"""The table of ports and independent implementations."""

from __future__ import annotations

import torch

from examples.benchmarks import reward_agreement
from examples.benchmarks.reward_agreement import AGREEMENTS, Agreement, main, row
from fk_reward.rewards import REWARDS
from tests.examples.scripts import invoke

TOLERANCE = {"nudenet": 2e-2}  # OpenCV rounds to 8 bits after resizing


def test_all_that_is_installed_agrees():
    for agreement in AGREEMENTS:
        found = row(agreement)
        assert agreement.port in REWARDS
        if "difference" in found:
            assert found["difference"] <= TOLERANCE.get(agreement.port, 1e-5), agreement.port
            assert found["cases"] >= 8


def test_a_package_that_is_not_installed_is_skipped(monkeypatch):
    monkeypatch.setattr(reward_agreement, "AGREEMENTS", [Agreement("ocr", "no_such_package", "a", "b", lambda: 1 / 0)])
    assert "no_such_package is not installed" in invoke(main, "--markdown")


def test_a_difference_is_the_largest_one(monkeypatch):
    pair = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.25])
    monkeypatch.setattr(reward_agreement, "AGREEMENTS", [Agreement("ocr", "torch", "a", "b", lambda: pair)])
    assert "| 2 | 0.25 |" in invoke(main, "--markdown")
