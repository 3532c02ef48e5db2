"""Pairs of predictions: in the order of finished scores, of one prompt and level, from clean to noisy."""

import dataclasses
import re

import numpy as np
import pytest

from fk_reward.rewards.noise_bands import NoiseBand
from fk_reward.training.curriculum import Curriculum, held_out, training_pairs, validation_pairs
from tests.training.recorded import LEVELS, write_recording

BAND = NoiseBand(0.5, 0.7, "0.6")
PLAN = Curriculum(band=BAND, teacher="grey", num_pairs=4000)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("recorded"))


def parts(pair):
    """(place, seed, level) of both sides, read off the names of the files."""
    names = [re.search(r"images/(\d+)/(\d+)-([\d.]+)\.png", str(source.content)) for source in pair.images]
    return [(int(name[1]), int(name[2]), float(name[3])) for name in names]


def levels_of(pairs):
    return np.array([parts(pair)[0][2] for pair in pairs])


def test_the_better_finished_image_is_chosen_and_the_gap_is_in_spreads(recording):
    scores, spread = recording.of("grey"), recording.spread("grey")
    for pair in training_pairs([recording], PLAN)[:500]:
        (place, better, level), (same, worse, other) = parts(pair)
        assert place == same and level == other and better != worse
        assert pair.prompt == recording.prompts[place]
        assert pair.margin == pytest.approx((scores[place, better] - scores[place, worse]) / spread)
        assert pair.margin > 0


def test_another_teacher_turns_the_order_around(recording):
    opposed = dataclasses.replace(PLAN, teacher="dark")
    scores = recording.of("grey")
    sides = [parts(pair) for pair in training_pairs([recording], opposed)[:200]]
    assert all(scores[a[0], a[1]] < scores[b[0], b[1]] for a, b in sides)


def test_the_levels_rise_and_stay_in_the_band(recording):
    """Shares against their expectation, within four standard errors."""
    levels = levels_of(training_pairs([recording], PLAN))
    n = len(levels)
    ramp, rest = levels[: n // 2], levels[n // 2 :]
    assert set(rest) == {0.0, 0.6}, "after the ramp: finished pairs and the band"
    assert (rest == 0).mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(rest)) ** 0.5)
    ceilings = BAND.high * (np.arange(n // 2) + 0.5) / (n // 2)
    assert (ramp <= ceilings).all() and set(ramp) == {0.0, 0.3, 0.6}
    below = ramp[ceilings < 0.3]
    assert (below == 0).all(), "nothing but finished images before the first level"
    between = ramp[(ceilings >= 0.3) & (ceilings < 0.6)]
    assert (between == 0.3).mean() == pytest.approx(0.75 / 2, abs=4 * 0.5 / len(between) ** 0.5)


def test_clean_pairs_alone_are_the_control(recording):
    control = dataclasses.replace(PLAN, clean_fraction=1.0)
    assert set(levels_of(training_pairs([recording], control))) == {0.0}
    without_ramp = dataclasses.replace(PLAN, ramp=0.0, clean_fraction=0.0)
    assert set(levels_of(training_pairs([recording], without_ramp))) == {0.6}


def test_one_adapter_for_all_levels_reads_them(recording):
    every = dataclasses.replace(PLAN, band=NoiseBand(0.0, 1.0, "all"), level_in_prompt=True, ramp=0.0)
    pairs = training_pairs([recording], every)
    assert set(levels_of(pairs)) == {0.0, *LEVELS}
    assert {pair.prompt.partition(") ")[0] for pair in pairs} == {f"(noise {n} %" for n in (0, 30, 60, 90)}


def test_prompts_are_drawn_alike_and_the_order_is_a_function_of_the_seed(recording):
    pairs = training_pairs([recording], PLAN)
    places = np.bincount([parts(pair)[0][0] for pair in pairs], minlength=6)
    assert abs(places - len(pairs) / 6).max() < 4 * (len(pairs) * 5 / 36) ** 0.5
    again = training_pairs([recording], PLAN)
    assert [parts(pair) for pair in pairs] == [parts(pair) for pair in again]
    other = training_pairs([recording], dataclasses.replace(PLAN, seed=1))
    assert [parts(pair) for pair in pairs] != [parts(pair) for pair in other]


def test_held_out_prompts_are_never_trained_on(recording):
    out = held_out(recording.prompts, fraction=0.34, seed=0)
    assert len(out) == 2
    train = training_pairs([recording], PLAN, without=out)
    assert not out & {pair.prompt for pair in train}
    validation = validation_pairs([recording], PLAN, only=out)
    assert {pair.prompt for pair in validation} == out
    assert len(validation) == 2 * 6 and set(levels_of(validation)) == {0.6}, "all pairs of four seeds, in the band"


def test_the_choice_of_held_out_prompts_does_not_depend_on_their_order():
    texts = [f"prompt {i}" for i in range(20)]
    assert held_out(texts, fraction=0.2, seed=3) == held_out(texts[::-1] * 2, fraction=0.2, seed=3)
    assert held_out(texts, fraction=0.2, seed=3) != held_out(texts, fraction=0.2, seed=4)
    assert held_out(texts, fraction=0.0, seed=0) == set()
    with pytest.raises(ValueError, match="One prompt"):
        held_out(["a"], fraction=0.5, seed=0)


def test_near_ties_are_left_out(recording):
    apart = dataclasses.replace(PLAN, min_gap=1.0, num_pairs=300)
    assert min(pair.margin for pair in training_pairs([recording], apart)) >= 1.0
    with pytest.raises(ValueError, match="min_gap"):
        training_pairs([recording], dataclasses.replace(PLAN, min_gap=100.0))


def test_a_band_without_recorded_levels_is_refused(recording):
    with pytest.raises(ValueError, match=r"no predictions in the noise band \[0.4, 0.5\).*0.900, 0.600, 0.300"):
        training_pairs([recording], dataclasses.replace(PLAN, band=NoiseBand(0.4, 0.5)))


@pytest.mark.parametrize("wrong", [{"ramp": 1.5}, {"clean_fraction": -0.1}, {"min_gap": -1.0}, {"num_pairs": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(PLAN, **wrong)
