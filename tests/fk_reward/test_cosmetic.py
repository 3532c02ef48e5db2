"""Steps that only show results."""

from __future__ import annotations

import logging

import pytest

from fk_reward.cosmetic import cosmetic


@pytest.mark.parametrize("error", [ValueError("a"), OSError("b"), RuntimeError("c"), KeyError("d")])
def test_a_step_that_fails_is_one_warning_with_its_name(error, caplog):
    with caplog.at_level(logging.WARNING), cosmetic("drawing lineage.png"):
        raise error
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Drawing lineage.png failed" in record.getMessage() and type(error).__name__ in record.getMessage()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_about_the_process_goes_through(error):
    with pytest.raises(error), cosmetic("drawing"):
        raise error


def test_nothing_is_said_of_a_step_that_works(caplog):
    with cosmetic("drawing"):
        pass
    assert not caplog.records
