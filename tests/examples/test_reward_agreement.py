"""The table of ports and independent implementations."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from examples.benchmarks import agreement_with_transformers, reward_agreement
from examples.benchmarks.reward_agreement import AGREEMENTS, Agreement, main, row
from fk_reward.rewards import REWARDS
from tests.examples.scripts import invoke

TOLERANCE = {
    "llava-score": 1e-3,  # log-odds after 600 tokens, padded on the left in a batch
    "nudenet": 2e-2,  # OpenCV rounds to 8 bits after resizing
}


@pytest.mark.parametrize("agreement", AGREEMENTS, ids=lambda agreement: agreement.port)
def test_what_is_installed_agrees_on_scores_that_differ(agreement):
    assert agreement.port in REWARDS
    if importlib.util.find_spec(agreement.package) is None:
        pytest.skip(f"{agreement.package} is not installed")
    with torch.no_grad():
        ours, theirs = agreement.compare()
    assert len(ours) >= 4
    assert theirs.double().std() > 0.01, "else the tolerance means nothing"
    assert (ours - theirs).abs().max() <= TOLERANCE.get(agreement.port, 1e-5)


def test_padding_to_a_square_is_part_of_what_is_compared(monkeypatch):
    monkeypatch.setattr(agreement_with_transformers, "squared", lambda image: image)
    (agreement,) = (agreement for agreement in AGREEMENTS if agreement.port == "llava-score")
    assert row(agreement)["difference"] > 0.01


def test_a_package_that_is_not_installed_is_skipped(monkeypatch):
    monkeypatch.setattr(reward_agreement, "AGREEMENTS", [Agreement("ocr", "no_such_package", "a", "b", lambda: 1 / 0)])
    assert "no_such_package is not installed" in invoke(main, "--markdown")


def test_a_difference_is_the_largest_one(monkeypatch):
    pair = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.25])
    monkeypatch.setattr(reward_agreement, "AGREEMENTS", [Agreement("ocr", "torch", "a", "b", lambda: pair)])
    assert "| 2 | 0.25 |" in invoke(main, "--markdown")
