"""Measures against hand-computed values and against data that are calibrated by construction."""

from __future__ import annotations

import math

import pytest
import torch

from fk_reward.training.metrics import answer_metrics, calibration_error

YES = torch.ones(4, dtype=torch.bool)


def test_ties_count_as_wrong_or_not_at_all():
    metrics = answer_metrics(torch.tensor([3.0, 0.0, -1.0, 2.0]), YES)
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_without_ties"] == pytest.approx(2 / 3)
    assert metrics["ties"] == 0.25


def test_truths_may_be_no():
    truths = torch.tensor([True, False, True, False])
    assert answer_metrics(torch.tensor([1.0, -1.0, -1.0, 1.0]), truths)["accuracy"] == 0.5
    assert answer_metrics(torch.zeros(4), truths)["accuracy"] == 0


def test_without_any_decision_there_is_no_accuracy_to_tell():
    metrics = answer_metrics(torch.zeros(4), YES)
    assert math.isnan(metrics["accuracy_without_ties"])
    assert metrics["calibration_error"] == 0


def test_calibration_of_one_bin_by_hand():
    logits = torch.full((4,), math.log(0.93 / 0.07))
    truths = torch.tensor([True, True, True, False])
    assert calibration_error(logits, truths) == pytest.approx(0.93 - 0.75)


def test_calibration_weights_bins_by_their_size():
    logits = torch.logit(torch.tensor([0.62, 0.62, 0.93, 0.07]))
    truths = torch.tensor([True, False, True, True])
    expected = (2 * abs(0.62 - 0.5) + 2 * abs(0.93 - 0.5)) / 4
    assert calibration_error(logits, truths) == pytest.approx(expected, abs=1e-6)


def calibrated(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50_000, generator=generator)
    truths = torch.rand(len(logits), generator=generator) < logits.sigmoid()
    return calibration_error(scale * logits, truths)


def test_answers_drawn_from_their_probabilities_are_calibrated():
    assert calibrated() < 0.01


@pytest.mark.parametrize("scale", [3.0, 0.3])
def test_too_sure_and_too_shy_answers_are_not(scale):
    assert calibrated(scale) > 0.05


def test_extreme_logits_stay_finite():
    assert calibration_error(torch.tensor([1e9, -1e9]), torch.tensor([True, True])) == 0.5


def test_shapes_are_checked():
    for logits, truths in ((torch.zeros(2), YES), (torch.zeros(0), YES[:0]), (torch.zeros(4, 1), YES[:, None])):
        with pytest.raises(ValueError, match="Expected logits"):
            answer_metrics(logits, truths)
