"""Numbers, and lists and shares of the work as they are typed."""

from __future__ import annotations

import pytest

from fk_reward.value_checks import parse_integers


def test_integers():
    assert parse_integers("k", "8,2, 4,2") == (2, 4, 8)


@pytest.mark.parametrize("text", ["", "2,", "0", "-1", "2;4", "two", "2.0"])
def test_wrong_integers(text):
    with pytest.raises(ValueError, match="k should be"):
        parse_integers("k", text)
