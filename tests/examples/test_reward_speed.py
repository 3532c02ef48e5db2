"""The speed benchmark: its arithmetic on a made-up clock, versions of it that must be noticed, and tiny models."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from examples.benchmarks import reward_speed
from examples.benchmarks.reward_speed import RUNS, Repetition, measure, reward_runs, summarize
from fk_reward.benchmarks import timing
from fk_reward.benchmarks.timing import seconds_of
from fk_reward.planning.full_size_rewards import weight_sizes

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


def run_main(out, **options):
    options = {"image_size": 64, "num_repetitions": 2, "batch_size": "2", "num_crops": "1"} | options
    reward_speed.main(out=out, **options)
    return json.loads((out / "reward_speed.json").read_text(encoding="utf-8"))


def test_main(tmp_path, capsys):
    content = run_main(tmp_path, backbone="phi3_v,llava_next", num_crops="1,4", batch_size="1,2")
    rows = content["rows"]
    settings = [(row["backbone"], row["num_crops"], row["batch_size"]) for row in rows]
    phi = [("phi3_v", crops, size) for crops in (1, 4) for size in (1, 2)]
    assert settings == [*phi, ("llava_next", None, 1), ("llava_next", None, 2)]
    assert [row["visual_tokens"] for row in rows[:3]] == [13, 13, 27], "(rows * columns + 1) * 4 + (rows + 1) * 2 + 1"
    for row in rows:
        assert len(row["repetitions"]) == 2
        assert 0 < row["batch_ratio_low"] <= row["batch_ratio"] <= row["batch_ratio_high"]
        assert row["joint_ratio"] > 0
        assert row["batch_peak_gb"] is None, "not measured on a CPU"
    printed = capsys.readouterr().out
    assert "GB of weights; activations come on top" in printed
    assert "tiny" in printed
    assert "peak" not in printed


@pytest.fixture
def never_built(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(reward_speed, "run_benchmark", fail)


def test_too_little_memory_is_refused_before_anything_is_built(monkeypatch, tmp_path, never_built):
    _, size = weight_sizes("phi3_v", full_size=False, dtype=torch.float32)
    monkeypatch.setattr(reward_speed, "free_memory", lambda device: size - 1)
    with pytest.raises(ValueError, match=r"phi3_v .* GB of weights alone, but cpu has .* GB free"):
        run_main(tmp_path)
    for enough in (size, None):
        monkeypatch.setattr(reward_speed, "free_memory", lambda device, enough=enough: enough)
        with pytest.raises(AssertionError, match="was built"):
            run_main(tmp_path)


@pytest.mark.parametrize("options", [{"backbone": "phi"}, {"dtype": "int8"}, {"num_crops": "0"}, {"batch_size": "x"}])
def test_wrong_options(tmp_path, never_built, options):
    with pytest.raises(ValueError):
        run_main(tmp_path, **options)


def test_a_batch_that_does_not_fit_is_reported_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    measure = reward_speed.measure

    def small_device(runs, *, batch_size, **options):
        if batch_size == 2:
            raise torch.OutOfMemoryError
        return measure(runs, batch_size=batch_size, **options)

    monkeypatch.setattr(reward_speed, "measure", small_device)
    rows = run_main(tmp_path, batch_size="1,2,3")["rows"]
    assert [row.get("note") for row in rows] == [None, "out of memory", None]
    assert "out of memory" in capsys.readouterr().out
