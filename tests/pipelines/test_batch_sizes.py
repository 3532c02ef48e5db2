"""Upper limits of batches."""

from __future__ import annotations

import pytest

from fk_reward import BatchSizes
from fk_reward.pipelines.batch_sizes import batch_size_fields


@pytest.mark.parametrize("name", batch_size_fields())
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("8", TypeError)]
)
def test_a_wrong_value_raises_and_names_the_field(name, value, error):
    with pytest.raises(error, match=name):
        BatchSizes(**{name: value})


@pytest.mark.parametrize("value", [None, 1, 64, "auto"])
def test_right_values(value):
    assert BatchSizes(reward_batch_size=value).reward_batch_size == value


def test_sizes_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        BatchSizes(8)
