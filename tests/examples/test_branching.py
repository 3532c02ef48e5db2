"""The branching benchmark: its measure by closed forms, and a run of a few steps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from examples.benchmarks import branching
from examples.benchmarks.branching import summarize, tree_at, variances
from tests.examples.scripts import invoke


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_share_is_that_of_the_trunks(share):
    """Rewards made of a part of the trunk and one of the branch, whose variances are known."""
    rng = np.random.default_rng(0)
    trunks, own = rng.standard_normal((600, 3, 1)), rng.standard_normal((600, 3, 4))
    rewards = np.sqrt(share) * trunks + np.sqrt(1 - share) * own + 5 * rng.standard_normal((600, 1, 1))
    explained, total = variances(rewards)
    assert explained.sum() / total.sum() == pytest.approx(share, abs=0.05)
    # the saboteur, who shuffles branches among trunks, finds nothing
    shuffled, of_all = variances(rng.permuted(rewards.reshape(600, 12), axis=1).reshape(600, 3, 4))
    assert shuffled.sum() / of_all.sum() == pytest.approx(0.0, abs=0.06)


def test_prompts_without_a_difference():
    same = [{"a": np.ones((2, 2))}] * 3
    with pytest.raises(ValueError, match="one reward of a"):
        summarize(same, ["x", "y", "z"])


@pytest.mark.parametrize("after", [1, 9, 18])
def test_trees_branch_where_they_are_asked_to(after):
    steps = tree_at(after, 20, trunks=2, branches=3).population().forecast(20).steps
    assert steps == (2,) * after + (6,) * (20 - after)


def test_main(tmp_path):
    small = ["--num-prompts", 3, "--num-trunks", 2, "--num-branches", 2, "--steps", 4, "--after", "1,2"]
    output = invoke(branching.main, *small, "-r", "shapes-clipscore", "--out", tmp_path / "out")
    assert "decided by the trunk" in output
    rows = json.loads((tmp_path / "out" / "branching.json").read_text())["rows"]
    assert [(row["solver"], row["after"]) for row in rows] == [(s, n) for s in branching.SOLVERS for n in (1, 2)]
    assert all(row["low"] <= row["share"] <= row["high"] <= 1.0 for row in rows)
