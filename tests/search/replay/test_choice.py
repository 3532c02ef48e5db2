"""The choice of a policy: a lead that holds on other prompts, and best of N where there is none."""

import numpy as np
import pytest

from fk_reward.search.replay.choice import Candidates, choose_policy, cross_validated
from fk_reward.search.replay.policies import Policy, Prices, Replayer
from fk_reward.search.replay.records import standardized

PRICES = Prices()
STEPS = 6
IMAGE = PRICES.of(Policy(1), STEPS)


def records(noise, *, prompts=30, seeds=40, seed=0):
    """Predictions that are the finished reward plus noise, which has this spread at each step."""
    rng = np.random.default_rng(seed)
    finished = rng.standard_normal((prompts, seeds, 1))
    return standardized(finished + np.append(noise, 0.0) * rng.standard_normal((prompts, seeds, STEPS)))


def chosen(values, *, images=3, steps=range(STEPS - 1), clusters=None):
    clusters = np.arange(len(values)) if clusters is None else clusters
    replayer = Replayer(values, num_subsets=256)
    return choose_policy(replayer, images * IMAGE, prices=PRICES, steps=steps, clusters=clusters)


@pytest.mark.parametrize("seed", range(3))
def test_predictions_that_say_nothing_are_not_used(seed):
    choice = chosen(records(np.full(STEPS - 1, 1e3), seed=seed))
    assert choice.policy == Policy(3) and choice.gain == 0
    assert choice.num_candidates > 20  # others were looked at


def test_a_reward_that_knows_at_once_drops_all_but_one():
    choice = chosen(records(np.zeros(STEPS - 1)))
    step, keep = choice.policy.cuts[-1]
    assert keep == 1 and step <= 1 and choice.policy.num_particles >= 8
    assert choice.gain > 5 * choice.error > 0


def test_cuts_are_where_the_reward_knows():
    choice = chosen(records(np.array([50.0, 50.0, 0.2, 0.1, 0.05])))
    assert choice.policy.cuts and min(step for step, _ in choice.policy.cuts) >= 2


def test_no_cut_is_made_where_none_is_allowed():
    assert chosen(records(np.zeros(STEPS - 1)), steps=()).policy == Policy(3)
    allowed = chosen(records(np.zeros(STEPS - 1)), images=6, steps=(3, 4)).policy.cuts
    assert allowed and {step for step, _ in allowed} <= {3, 4}


def test_few_prompts_are_no_evidence():
    assert chosen(records(np.zeros(STEPS - 1), prompts=4)).policy == Policy(3)
    one_text = chosen(records(np.zeros(STEPS - 1), prompts=12), clusters=np.zeros(12, dtype=int))
    assert one_text.policy == Policy(3)


def test_every_candidate_keeps_to_the_budget():
    candidates = Candidates(Replayer(records(np.full(STEPS - 1, 0.5)), num_subsets=64), 3 * IMAGE, prices=PRICES,
                            steps=range(STEPS - 1))  # fmt: skip
    found = {**candidates.of_cuts(1), **candidates.of_cuts(2)}
    assert {len(policy.cuts) for policy in found} == {1, 2}
    for policy in found:
        assert PRICES.of(policy, STEPS) <= 3 * IMAGE + 1e-6
        sizes = [policy.num_particles, *(keep for _, keep in policy.cuts)]
        assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize("images", [0, 41])
def test_budgets_that_the_records_do_not_allow_are_refused(images):
    with pytest.raises(ValueError, match="pay for 1 to 40 whole images"):
        chosen(records(np.zeros(STEPS - 1)), images=images)


def test_luck_does_not_survive_cross_validation():
    rng = np.random.default_rng(2)
    gains = rng.standard_normal((300, 60))  # 300 candidates without a lead
    validated = cross_validated(gains, np.arange(60))
    assert abs(validated.mean()) < 4 / np.sqrt(60)
    assert gains.mean(axis=1).max() > 2.5 / np.sqrt(60)  # the saboteur believes the best one


def test_prompts_of_one_text_are_in_one_fold():
    texts = np.repeat(np.arange(10), 2)
    luck = np.repeat(np.random.default_rng(3).standard_normal((300, 10)), 2, axis=1)  # of a text, at both its prompts
    assert abs(cross_validated(luck, texts).mean()) < 4 / np.sqrt(10)
    # the saboteur lets a text choose for itself
    assert cross_validated(luck, np.arange(20)).mean() > cross_validated(luck, texts).mean() + 0.3
