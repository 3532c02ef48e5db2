"""Published figures: as printed, with a source, and only where a source tells them."""

from __future__ import annotations

import pytest

from fk_reward.benchmarks.mjbench.summary import PUBLISHED, published_rows


def test_every_figure_has_a_source_and_is_a_share():
    for perspective in ("alignment", "safety", "quality", "bias"):
        rows = published_rows(perspective)
        assert all("arXiv" in row["source"] for row in rows)
        assert all(0 < row[name] <= 1 for row in rows for name in row if name not in ("model", "source"))


def test_figures_of_the_main_table():
    (row,) = [row for row in published_rows("safety") if row["model"] == "PickScore-v1"]
    assert (row["accuracy"], row["accuracy_without_ties"]) == pytest.approx((0.372, 0.422))
    (row,) = [row for row in published_rows("bias") if row["model"] == "HPS-v2.1"]
    assert (row["accuracy"], row["nds"], row["ges"]) == pytest.approx((0.55, 0.779, 0.876))


def test_what_a_source_does_not_tell_is_left_out():
    (row,) = [row for row in published_rows("quality") if row["model"] == "LLaVA-Reward-Phi"]
    assert row["accuracy"] == pytest.approx(0.911)
    assert "accuracy_without_ties" not in row
    assert not [row for row in published_rows("bias") if "LLaVA" in row["model"]]
    assert all("not checked" in result.source for result in PUBLISHED if "LLaVA-Reward" in result.model)
