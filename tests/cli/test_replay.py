"""`fk-reward replay`."""

import json

import numpy as np
import pytest

from fk_reward.search.replay.records import RewardRecords


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    rng = np.random.default_rng(0)
    finished = rng.standard_normal((24, 30, 1))
    own = finished + np.array([3.0, 0.3, 0.2, 0.1, 0.0]) * rng.standard_normal((24, 30, 5))
    path = tmp_path_factory.mktemp("records") / "records.npz"
    return RewardRecords({"own": own, "other": rng.standard_normal((24, 30, 5))}).save(path)


def test_figures_are_written_and_advice_is_printed(run, records, tmp_path):
    out = tmp_path / "new" / "replay.json"
    result = run("replay", records, "--reward", "own", "--budget-images", 3, "--json", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["gain"] == pytest.approx(found["policy"] - found["best_of_n"]) and found["equals_best_of"] > 3
    assert set(found["held_out"]) == {"other"} and len(found["interval"]) == 2
    assert f"pipe(prompt, search={found['advice']})" in result.stdout and found["advice"].startswith("Pruning(")
    assert f"pipe(prompt, search={found['fk']['advice']})" in result.stdout
    assert "rank correlation" in result.stdout


def test_cuts_of_ones_own_are_reported(run, records):
    result = run("replay", records, "-r", "own", "-k", 4, "--keep", 3, 1, "--at", 0.2, 0.6, "--budget-images", 3)
    assert result.exit_code == 0, result.output
    assert "Pruning(num_particles=4, keep=(3, 1), at=(0.2, 0.6))" in result.stdout


def test_best_of_another_n_is_reported(run, records):
    result = run("replay", records, "-r", "own", "--search", "best-of-n", "-k", 5)
    assert result.exit_code == 0 and "BestOfN(num_particles=5)" in result.stdout, result.output


def test_what_cannot_be_replayed_is_refused(refused, records):
    message = refused("replay", records, "-r", "own", "--search", "fk")
    assert "FKSteeringConfig cannot be replayed: it copies particles" in message and "Pruning" in message
    assert "draws other trajectories" in refused("replay", records, "-r", "own", "--search", "draft-refine")
    assert "Unknown search" in refused("replay", records, "-r", "own", "--search", "fkk")


def test_mistakes_are_named(refused, records, tmp_path):
    assert "Name the --reward that chooses: own, other" in refused("replay", records)
    assert "go together" in refused("replay", records, "-r", "own", "-k", 4)
    assert "settings of --search pruning" in refused(
        "replay", records, "-r", "own", "--search", "best-of-n", "--keep", 1, "--at", 0.5
    )
    assert "step_cost should be above 0" in refused("replay", records, "-r", "own", "--step-cost", 0)
    assert "nothing.npz" in refused("replay", tmp_path / "nothing.npz")
    assert "They hold own, other" in refused("replay", records, "-r", "owm")
