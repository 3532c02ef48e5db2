"""Trees against best of N: what is read off is what a search would have returned."""

from __future__ import annotations

import json

import pytest
import torch

from examples.benchmarks import shapes_trees
from examples.benchmarks.cuts import best_after_cut
from examples.benchmarks.shapes_trees import VERIFIER, Drawn, TreeRequest, TreeTable, cost_of
from fk_reward import FKSteeringPipeline
from fk_reward.search import TreeSearch
from tests import tiny
from tests.examples.scripts import invoke


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_the_branch_is_the_one_that_a_population_returns(rng, keep):
    for _ in range(20):
        cut, finished = torch.from_numpy(rng.standard_normal((2, 8)))
        population = TreeSearch(num_branches=8, branch_at=0.2, keep=(keep,), at=(0.6,)).population()
        population.begin(10)
        population.advance(torch.zeros(1), step=2)
        kept = population.advance(cut, step=6)
        left = torch.arange(8) if kept is None else kept
        population.finish(finished[left])
        returned = int(left[population.select(1)[0, 0]])
        assert best_after_cut(cut.numpy(), finished.numpy(), number=8, keep=keep)[returned] == 1.0


def test_a_tree_costs_what_its_call_costs():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=lambda images, prompts: images.mean(dim=(1, 2, 3)))
    tree = TreeSearch(num_branches=5, keep=(2,), branch_at=0.3, at=(0.6,))
    cost, expected = pipe("a dog", search=tree, num_inference_steps=6).trace.cost, cost_of(tree, 6)
    for name in ("sample_steps", "denoiser_rows", "decodes", "reward_calls", "previews"):
        assert getattr(cost, name) == getattr(expected, name), name


def drawn(rng, number, *, knows):
    """Samples whose images are right or wrong by chance; predictions at the cut say which, or are shuffled."""
    found = []
    for place in range(number):
        tree, plain = (rng.integers(0, 2, size).astype(float) for size in (26, 12))
        pools = {"tree": tree, "cut": tree if knows else rng.permutation(tree), "plain": plain, "short": plain}
        scores = {name: {VERIFIER: values} for name, values in pools.items()}
        found.append(Drawn(f"prompt {place}", "a task", **scores))
    return found


def test_a_reward_that_knows_at_the_cut_gains_and_one_that_guesses_does_not(rng):
    right = {}
    for knows in (True, False):
        rows = TreeTable(drawn(rng, 200, knows=knows), TreeRequest(), 20).rows(80)
        methods = ("one image", "best of 4, 20 steps", "best of 8, 10 steps", "tree, 12 branches, 2 finished")
        assert tuple(row["method"] for row in rows) == methods
        one, best, _, tree = rows
        right[knows] = tree["right"]["estimate"]
        assert one["right"]["estimate"] == pytest.approx(0.5, abs=0.04)
        assert best["right"]["estimate"] == pytest.approx(1 - 0.5**4, abs=0.03)
        assert tree["minus"]["same"]["right"]["estimate"] == pytest.approx(right[knows] - best["right"]["estimate"])
    assert right[True] > 0.99
    assert right[False] == pytest.approx(1 - 0.5**2, abs=0.04), "the best of two that were kept blindly"


def test_more_branches_than_were_drawn_are_refused(rng):
    with pytest.raises(ValueError, match="pays for 26 branches"):
        TreeTable(drawn(rng, 2, knows=True), TreeRequest(num_branches=20), 20).rows(160)


def test_main(tmp_path):
    small = ["--num-prompts", 2, "--num-samples", 1, "--num-branches", 5, "--num-plain", 3, "--num-short", 4]
    options = [*small, "-r", "shapes-clipscore", "--budgets", "40", "--out", tmp_path, "--device", "cpu"]
    assert "the process that finishes last" in invoke(shapes_trees.main, *options, "--shard", "0/2")
    assert "Trees less best of N" in invoke(shapes_trees.main, *options, "--shard", "1/2")
    rows = json.loads((tmp_path / "trees.json").read_text())["rows"]
    assert [row["reward"] for row in rows] == [None, *["shapes-clipscore"] * 3, *[VERIFIER] * 3]
    assert rows[3]["method"] == "tree, 5 branches, 1 finished"
    assert set(rows[3]["minus"]) == {"same", "short", "sdxl", "flux.1-dev"}


def test_a_budget_for_a_part_of_an_image_is_refused():
    with pytest.raises(ValueError, match="A budget of 90 is no whole number of images of 20 steps"):
        TreeRequest().within(90, 20)


@pytest.mark.parametrize(
    ("drawn", "option"),
    [({"num_plain": 3}, "--num-plain"), ({"num_short": 7}, "--num-short"), ({"num_branches": 11}, "--num-branches")],
)
def test_a_budget_for_more_than_is_drawn_is_refused(drawn, option):
    assert TreeRequest().within(80, 20).num_branches == 12
    with pytest.raises(ValueError, match=f"A budget of 80 pays for .*{option}"):
        TreeRequest(**drawn).within(80, 20)
