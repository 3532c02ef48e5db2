"""Weights in the log domain against the linear one, in extended precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.smc.weights import effective_sample_size, log_mean_increment, normalized_weights


@given(values=st.lists(st.floats(-300, 300), min_size=1, max_size=10), offset=st.floats(-1e5, 1e5))
@settings(max_examples=80, deadline=None)
def test_weights_agree_with_the_linear_domain(values, offset):
    weights = np.exp(np.asarray(values, dtype=np.longdouble))
    tensor = torch.tensor(values, dtype=torch.float64)
    np.testing.assert_allclose(normalized_weights(tensor).numpy(), (weights / weights.sum()).astype(float), atol=1e-12)
    ess = float(weights.sum() ** 2 / (weights**2).sum())
    assert float(effective_sample_size(tensor)) == pytest.approx(ess, rel=1e-9)
    assert float(effective_sample_size(tensor + offset)) == pytest.approx(ess, rel=1e-6)


def test_log_mean_increment_by_hand():
    before, increments = torch.tensor([0.0, 1.0]).log(), torch.tensor([5.0, 2.0])
    assert float(log_mean_increment(before, increments)) == pytest.approx(2.0), (
        "a particle of zero weight does not count"
    )
