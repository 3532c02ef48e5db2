"""Distance between pictures, against scipy."""

from __future__ import annotations

import pytest
import scipy.spatial
import torch

from fk_reward.benchmarks.statistics import mean_pairwise_distance


def test_agrees_with_scipy():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = scipy.spatial.distance.pdist(images.flatten(1).numpy()).mean() / (3 * 8 * 8) ** 0.5
    assert mean_pairwise_distance(images) == pytest.approx(expected)


def test_copies_have_no_distance():
    assert mean_pairwise_distance(torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8)) == 0.0


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="two images"):
        mean_pairwise_distance(torch.zeros(1, 3, 8, 8))
