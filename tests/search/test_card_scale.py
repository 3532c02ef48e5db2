"""Lambda of searches without a sampler's bookkeeping: a number, or by the spread that the reward's card states."""

import dataclasses

import pytest

from fk_reward.search import SVDD, NoiseSearch, Restart
from fk_reward.search.base import ReadsSpread
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered

SEARCHES = {
    "svdd": SVDD(num_particles=2, num_proposals=2, num_branchings=2),
    "restart": Restart(num_particles=2, num_restarts=1),
    "noise-search": NoiseSearch(num_particles=2, num_rounds=2, strategy="pcn"),
}
each = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


@each
def test_lambda_is_that_of_the_card(search):
    assert search.reward_scale == "card" and isinstance(search, ReadsSpread)
    assert search.for_spread(0.01) == dataclasses.replace(search, reward_scale=150.0)
    kept = dataclasses.replace(search, reward_scale=7.0)
    assert kept.for_spread(None) == kept.for_spread(0.01) == kept


@each
def test_a_card_without_a_spread_is_refused_before_anything_is_drawn(search):
    class Unknown(BrightnessReward):
        card = dataclasses.replace(BrightnessReward.card, spread=None)

        def score(self, images, prompts):
            raise AssertionError("an image was scored")

    with pytest.raises(ValueError, match="needs a reward whose card states the spread"):
        steered(tiny.make_sd(), Unknown())("a red circle", search=search, num_inference_steps=4)


@each
def test_a_call_runs_with_it_and_the_trace_has_the_number(search):
    pipe = steered(tiny.make_sd())
    call = {"num_inference_steps": 4, "output_type": "pt"}
    by_card = pipe("a red circle", search=search, generator=generator(), **call)
    by_hand = pipe(
        "a red circle", search=dataclasses.replace(search, reward_scale=150.0), generator=generator(), **call
    )
    assert by_card.trace.config["reward_scale"] == 150.0
    assert (by_card.images == by_hand.images).all()


@each
@pytest.mark.parametrize(("value", "error"), [(-1.0, ValueError), ("auto", TypeError), (True, TypeError)])
def test_anything_else_is_refused(search, value, error):
    with pytest.raises(error, match='reward_scale should be .*or "card"'):
        dataclasses.replace(search, reward_scale=value)


def test_strategies_without_a_lambda_need_no_spread():
    assert NoiseSearch(strategy="random").for_spread(None).reward_scale == "card"
