"""Replay: choose on half of the prompts, report on the other half; and what it finds on recorded real models."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fk_reward.search import BestOfN, DraftRefine, FKSteeringConfig, Pruning
from fk_reward.search.replay.policies import Prices, best_of_n
from fk_reward.search.replay.records import Knowledge, RewardRecords, standardized
from fk_reward.search.replay.report import fk_settings, halves, paste, replay

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "reward_trajectories"
STEPS = 6


def made(*, prompts=40, seeds=50, noise=(3.0, 0.5, 0.3, 0.2, 0.1, 0.0), seed=0):
    rng = np.random.default_rng(seed)
    finished = rng.standard_normal((prompts, seeds, 1))
    own = finished + np.asarray(noise) * rng.standard_normal((prompts, seeds, STEPS))
    other = 0.6 * finished + 0.8 * rng.standard_normal((prompts, seeds, STEPS))
    return RewardRecords({"own": own, "other": 5.0 * other, "opposite": -own})


@pytest.fixture(scope="module")
def found():
    return replay(made(), "own", budget_images=3)


def test_a_reward_that_knows_early_gains(found):
    assert isinstance(found.search, Pruning)
    assert found.own.gain == pytest.approx(found.own.policy - found.own.best_of_n)
    assert 0 < found.own.interval[0] < found.own.gain < found.own.interval[1]
    assert found.equals_best_of > 3.5 and found.cost[0] <= found.cost[1] + 1e-6


def test_the_halves_are_apart(found):
    assert sorted(found.chosen_on + found.reported_on) == list(range(40))
    texts = np.repeat(np.arange(10), 4)
    first, second = halves(texts, seed=1)
    assert not set(texts[first]) & set(texts[second]) and len(first) == len(second) == 20


def test_best_of_n_is_exact(found):
    finished = standardized(made().of("own"))[list(found.reported_on), :, -1]
    assert found.own.best_of_n == pytest.approx(best_of_n(finished, 3).mean(), abs=1e-9)
    # the value lies between its neighbours on the curve of best of N
    below, above = int(found.equals_best_of), int(found.equals_best_of) + 1
    assert best_of_n(finished, below).mean() <= found.own.policy <= best_of_n(finished, above).mean()


def test_held_out_rewards_are_those_of_the_same_images(found):
    assert set(found.held_out) == {"other", "opposite"}
    assert found.held_out["opposite"].gain == pytest.approx(-found.own.gain, abs=1e-6)
    # own images are better by the gain; of it the correlation, 0.6, arrives in the other reward
    assert found.held_out["other"].gain == pytest.approx(0.6 * found.own.gain, abs=0.06)


def test_where_nothing_helps_it_is_best_of_n():
    found = replay(made(noise=(9, 9, 9, 9, 9, 0.0)), "own", budget_images=3)
    assert found.search == BestOfN(num_particles=3) and found.advice == "BestOfN(num_particles=3)"
    assert (found.own.gain, found.own.interval, found.equals_best_of) == (0.0, (0.0, 0.0), 3.0)
    assert all(gain.gain == 0 for gain in found.held_out.values())


def test_what_is_reported_does_not_look_at_the_prompts_of_the_choice():
    search = Pruning(num_particles=4, keep=(1,), at=(0.5,))
    first = replay(made(), "own", budget_images=3, search=search)
    values = made().of("own").copy()
    values[list(first.chosen_on)] = made(noise=(9, 9, 9, 9, 9, 0), seed=8).of("own")[list(first.chosen_on)]
    other = replay(RewardRecords({"own": values}), "own", budget_images=3, search=search)
    assert other.own == first.own and other.knowledge != first.knowledge


def test_a_search_of_ones_own_is_reported():
    search = Pruning(num_particles=5, keep=(2,), at=(0.3,))
    found = replay(made(), "own", budget_images=2, search=search)
    assert found.search is search and found.choice is None
    assert found.cost[0] > found.cost[1] and any("costs" in note for note in found.notes)
    plain = replay(made(), "own", budget_images=2, search=BestOfN(num_particles=4))
    assert plain.equals_best_of == pytest.approx(4.0, abs=0.3)  # one N is worth another by its own curve


@pytest.mark.parametrize("search", [FKSteeringConfig(), DraftRefine()])
def test_what_cannot_be_replayed_is_refused(search):
    with pytest.raises(ValueError, match=f"{type(search).__name__} cannot be replayed"):
        replay(made(), "own", budget_images=2, search=search)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_images": 0}, "budget_images should be at least 1"),
        ({"budget_images": 51}, "budget_images should be at most 50"),
        ({"budget_images": 2, "search": Pruning(num_particles=60, keep=(2,), at=(0.5,))}, "60 particles, and 50 seeds"),
    ],
)
def test_what_the_records_do_not_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replay(made(), "own", **options)


def test_one_prompt_is_no_replay():
    with pytest.raises(ValueError, match="at least 4 different prompts.*have 1"):
        replay(RewardRecords({"a": np.random.default_rng(0).random((8, 9, 3))}, ["x"] * 8), "a", budget_images=2)


def test_expensive_rewards_are_asked_less_often():
    dear = replay(made(), "own", budget_images=3, prices=Prices(step=1.0, reward=20.0))
    assert dear.search == BestOfN(num_particles=3)  # a cut costs more than all of a trajectory


def test_prompts_without_a_spread_are_told():
    values = made().of("own").copy()
    values[:7] = 1.0
    found = replay(RewardRecords({"own": values}), "own", budget_images=2)
    assert any("of 7 prompts have one reward" in note for note in found.notes)


def test_the_figures_are_json(found):
    read = json.loads(json.dumps(found.to_dict()))
    assert {"best_of_n", "policy", "gain", "interval", "equals_best_of", "held_out"} <= set(read)
    assert read["search"]["name"] == "pruning" and read["held_out"]["other"]["interval"][0] < 1


def test_advice_is_code_that_makes_the_search(found):
    assert eval(found.advice, {"Pruning": Pruning}) == found.search  # noqa: S307
    assert eval(found.fk_advice, {"FKSteeringConfig": FKSteeringConfig}) == found.fk  # noqa: S307
    assert paste(FKSteeringConfig()) == "FKSteeringConfig(num_particles=4, reward_scale='card')"


def test_fk_settings_follow_what_was_measured():
    known = [Knowledge(step, correlation, 0.0, 1.0, 0.5) for step, correlation in enumerate([0.1, 0.4, 0.6, 0.95, 1.0])]
    found = fk_settings(known, spread=0.25, num_particles=8)
    assert (found.num_particles, found.reward_scale) == (8, 6.0)
    assert found.step_weights(5) == {2: 0.5, 3: 0.5} and found.potential == "difference"
    assert fk_settings(known, spread=0.0, num_particles=8).reward_scale == 0.0


def recorded(model):
    path = RECORDED / f"{model}.npz"
    if not path.exists():
        pytest.skip("the recorded rewards of real models are not here")
    return RewardRecords.load(path)


@pytest.mark.parametrize(
    ("budget", "equal"),
    [(4, 5.1), pytest.param(8, 11.0, marks=pytest.mark.slow), pytest.param(16, 23.3, marks=pytest.mark.slow)],
)
def test_pruning_pays_on_flux(budget, equal):
    found = replay(recorded("flux1-dev"), "imagereward", budget_images=budget)
    assert found.equals_best_of >= equal and found.own.interval[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux1-dev", "sdxl"])
@pytest.mark.parametrize("budget", [4, 8, 16])
def test_no_reward_is_below_best_of_n(model, budget):
    if budget > 4 and "FK_REWARD_ALL_RECORDS" not in os.environ:
        pytest.skip("minutes: FK_REWARD_ALL_RECORDS=1 replays every budget")
    records = recorded(model)
    for name in records.rewards:
        assert replay(records, name, budget_images=budget).own.gain >= 0, name
