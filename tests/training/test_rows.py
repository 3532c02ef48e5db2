"""Values of rows, from every library that makes rows."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from fk_reward.training.rows import finite_number, is_missing, plain_value, short, truth_value

KINDS = (int, float, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64, Decimal, np.array, torch.tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_all_libraries(kind):
    number = finite_number(kind(5), "rating")
    assert type(number) is float and number == 5.0
    assert [truth_value(kind(value), "label") for value in (0, 1)] == [False, True]
    with pytest.raises(ValueError, match="label must be 0 or 1"):
        truth_value(kind(2), "label")


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), "5", np.str_("5"), b"5", None, [5], np.array([5]), 5j, torch.ones(2)]
)
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="rating must be a number"):
        finite_number(value, "rating")


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, np.float32("nan"), Decimal("NaN"), 10**400, torch.tensor(math.inf)]
)
def test_numbers_are_finite(value):
    with pytest.raises(ValueError, match="rating must be finite"):
        finite_number(value, "rating")


def test_truth_values_of_all_libraries():
    for value in (True, np.bool_(True), torch.tensor(True), np.array(True)):
        assert truth_value(value, "label") is True
    for value in ("1", "true", None, math.nan, [1], np.array([1, 0])):
        with pytest.raises(ValueError, match="label must be 0 or 1"):
            truth_value(value, "label")


def test_what_is_missing():
    assert [is_missing(value) for value in (None, math.nan, np.float32("nan"), torch.tensor(math.nan))] == [True] * 4
    assert [is_missing(value) for value in (0, "", False, "nan", [], np.zeros(2), {})] == [False] * 7


def test_strings_become_plain():
    assert type(plain_value(np.str_("a"))) is str
    assert plain_value(np.array([1, 2])).tolist() == [1, 2]


def test_messages_stay_short():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert short("a" * 1000) == "'" + "a" * 76 + "..."
    assert short(nested) == "list"
    while nested:  # taken apart by hand: to free 100,000 levels at once would overflow the stack
        nested = nested.pop()
