"""The arithmetic of the speed benchmark on a made-up clock, and versions of it that the same checks must refuse."""

from __future__ import annotations

import statistics

import pytest
import torch

from examples.benchmarks import reward_speed, timing
from examples.benchmarks.reward_speed import RUNS, Repetition, measure, reward_runs, summarize
from examples.benchmarks.timing import seconds_of

CALL, VISION, LANGUAGE, SWITCH = 3.0, 1.0, 2.0, 10.0


class FakeReward:
    """A reward whose calls take a known time: so much a call, an image, an image and dimension, a switch."""

    dimensions = ("a", "b", "c")

    def __init__(self):
        self.seconds, self.active, self.scored = 0.0, "a", []

    def set_dimension(self, dimension):
        self.seconds += SWITCH * (dimension != self.active)
        self.active = dimension
        return self

    def __call__(self, images, prompts):
        self._run(images, prompts, [self.active])

    def score_dimensions(self, images, prompts):
        self._run(images, prompts, self.dimensions)

    def _run(self, images, prompts, dimensions):
        assert len(images) == len(prompts)
        self.seconds += CALL + len(images) * (VISION + LANGUAGE * len(dimensions))
        self.scored.append((len(images), tuple(dimensions)))


def measure_fake(measure_fn=measure, *, num_repetitions=3, slowdown=0.0):
    """Measure the fake reward on a clock that `slowdown` makes every run a little longer than the one before."""
    reward, num_runs = FakeReward(), 0

    def timed(run):
        nonlocal num_runs
        before = reward.seconds
        run()
        num_runs += 1
        return (reward.seconds - before) * (1 + slowdown * num_runs)

    runs = reward_runs(reward, torch.zeros(8, 3, 2, 2), ["x"] * 8)
    for run in runs.values():
        run()
    return measure_fn(runs, batch_size=8, num_repetitions=num_repetitions, timed=timed), reward


def check_exact(repetitions):
    single, batch = CALL + VISION + LANGUAGE, CALL + 8 * (VISION + LANGUAGE)
    row = summarize(repetitions)
    assert row["single_rate"] == pytest.approx(1 / single)
    assert row["batch_rate"] == pytest.approx(8 / batch)
    assert row["batch_ratio"] == pytest.approx(batch / (8 * single))
    assert row["joint_ratio"] == pytest.approx((CALL + 8 * (VISION + 3 * LANGUAGE)) / (3 * batch + 3 * SWITCH))


def test_ratios_are_those_of_the_costs():
    check_exact(measure_fake()[0])


class OneSingle(Repetition):
    """Forgets that there are B single calls."""

    @property
    def batch_ratio(self):
        return self.batch / (self.singles / self.batch_size)


class AgainstOnePass(Repetition):
    """Compares the three dimensions with one of the three passes."""

    @property
    def joint_ratio(self):
        return self.joint / self.batch


class RatePerCall(Repetition):
    """Counts calls for images."""

    @property
    def batch_rate(self):
        return 1 / self.batch


@pytest.mark.parametrize("broken", [OneSingle, AgainstOnePass, RatePerCall])
def test_wrong_arithmetic_is_noticed(monkeypatch, broken):
    monkeypatch.setattr(reward_speed, "Repetition", broken)
    with pytest.raises(AssertionError):
        check_exact(measure_fake()[0])


def test_a_joint_pass_that_forgets_dimensions_is_noticed(monkeypatch):
    monkeypatch.setattr(FakeReward, "score_dimensions", FakeReward.__call__)
    with pytest.raises(AssertionError):
        check_exact(measure_fake()[0])


def check_drift(measure_fn):
    """On a machine that gets steadily slower the ratios hardly move."""
    steady, drifting = (summarize(measure_fake(measure_fn, num_repetitions=10, slowdown=s)[0]) for s in (0.0, 0.02))
    for name in ("batch_ratio", "joint_ratio"):
        assert drifting[name] == pytest.approx(steady[name], rel=0.02), name


def block_after_block(runs, *, batch_size, num_repetitions, timed):
    """What not to do: all repetitions of one run, then all of the next."""
    seconds = {name: [timed(runs[name]) for _ in range(num_repetitions)] for name in RUNS}
    rounds = zip(*seconds.values(), strict=True)
    return [Repetition(batch_size=batch_size, **dict(zip(seconds, values, strict=True))) for values in rounds]


def test_a_slowing_machine_does_not_bias_the_ratios():
    check_drift(measure)


def test_block_after_block_would():
    with pytest.raises(AssertionError):
        check_drift(block_after_block)


def test_runs_score_the_same_images_and_only_passes_switch():
    _, reward = measure_fake(num_repetitions=1)
    assert reward.scored[:8] == [(1, ("a",))] * 8
    assert reward.scored[8:13] == [(8, ("a",)), (8, ("a",)), (8, ("b",)), (8, ("c",)), (8, ("a", "b", "c"))]
    assert reward.scored[13:22] == [(1, ("c",))] * 8 + [(8, ("c",))], "no switch for a single call to pay"


def test_quartiles():
    values = [1.0, 1.1, 1.2, 1.3, 9.0]
    row = summarize([Repetition(batch_size=1, singles=1.0, batch=x, passes=1.0, joint=1.0) for x in values])
    assert (row["batch_ratio"], row["batch_ratio_low"], row["batch_ratio_high"]) == pytest.approx((1.2, 1.1, 1.3))
    assert row["batch_rate"] == pytest.approx(1 / statistics.median(values))


def test_the_clock_is_read_before_and_after_the_run(monkeypatch):
    events = []
    times = iter([1.0, 3.5])
    monkeypatch.setattr(timing, "timer", lambda: events.append("clock") or next(times))
    assert seconds_of(lambda: events.append("run")) == 2.5
    assert events == ["clock", "run", "clock"]


def test_the_clock_is_that_of_pytorch_which_waits_for_the_accelerator():
    assert timing.timer is torch.utils.benchmark.timer
