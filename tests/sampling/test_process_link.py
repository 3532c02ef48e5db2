"""Processes that share a call tell one another what they do and why they fail. Threads stand in for them here."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from fk_reward.sampling.process_link import Patience, ProcessFailure, ProcessLink, start_heart

QUICK = Patience(notice=0.1, silence=0.6, total=3.0, beat=0.05)


def together(*bodies, store=None, patience=QUICK):
    """Run each body with its link in a thread; returns what each gave or raised, and the seconds it took."""
    store = HashStore() if store is None else store

    def run(process):
        started = time.monotonic()
        try:
            with ProcessLink(store, process, len(bodies), patience=patience) as link:
                result = bodies[process](link)
        except Exception as error:  # noqa: BLE001 (it is looked at)
            result = error
        return result, time.monotonic() - started

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(run, range(len(bodies))))


def meets(link, times=3):
    return [link.meet(f"{link.process} at {i}") for i in range(times)]


def test_everybody_hears_everybody():
    for result, _ in together(*[meets] * 3):
        assert result == [[f"{process} at {i}" for process in range(3)] for i in range(3)]


def test_what_was_said_is_cleared_away():
    store = HashStore()
    for _ in range(3):
        together(meets, meets, store=store)
    assert store.num_keys() < 20


def test_calls_do_not_hear_earlier_ones():
    store = HashStore()
    together(meets, meets, store=store)

    def fails(link):
        raise ValueError("the second call")

    results = together(fails, meets, store=store)
    assert "the second call" in str(results[1][0])
    expected = [[f"{process} at {i}" for process in range(2)] for i in range(3)]
    assert together(meets, meets, store=store)[0][0] == expected


@pytest.mark.parametrize("error", [ValueError("black"), MemoryError("CUDA"), KeyboardInterrupt()])
def test_a_failure_anywhere_is_told_at_once_with_its_reason(error):
    def fails(link):
        with pytest.raises(type(error)), link:
            link.meet("0 at 0")
            raise error

    _, *others = together(fails, meets, meets)
    for told, seconds in others:
        assert isinstance(told, ProcessFailure)
        assert f"Rank 0, which shares this call, has failed: {type(error).__name__}: {error}" in str(told)
        assert seconds < 1.0


def test_a_process_that_fails_because_another_failed_does_not_pass_it_on():
    def fails(link):
        raise ValueError("the first")

    def passes_on(link):
        link.tell(ProcessFailure("rank 0"))
        return link.meet("1 at 0")

    results = together(fails, passes_on, meets)
    assert all("Rank 0, which" in str(error) and "the first" in str(error) for error, _ in results[1:])


def test_a_killed_process_is_noticed_by_its_silence():
    """No body runs for process 1: its heart beats a while, as that of a process that is killed later."""
    store = HashStore()
    stop = time.monotonic() + 0.3

    def dying():
        while time.monotonic() < stop:
            store.add("fk_reward/beats/1", 1)
            time.sleep(0.05)

    thread = threading.Thread(target=dying)
    thread.start()
    with pytest.raises(ProcessFailure, match="Rank 1, .* no sign of life for 1 s: its process has ended"):
        ProcessLink(store, 0, 2, patience=QUICK).meet("here")
    assert time.monotonic() - stop < 1.5
    thread.join()


def test_a_process_that_never_calls_is_waited_for_within_bounds(caplog):
    started = time.monotonic()
    with (
        caplog.at_level(logging.WARNING, logger="fk_reward"),
        pytest.raises(ProcessFailure, match="has not made this call"),
    ):
        ProcessLink(HashStore(), 0, 2, patience=Patience(notice=0.1, total=1.0)).meet("here")
    assert 0.9 < time.monotonic() - started < 2.0
    told = [record.message for record in caplog.records]
    assert all("Waiting for rank 1" in text for text in told)
    assert 2 <= len(told) <= 4  # after 0.1, 0.2, 0.4, 0.8 seconds


def test_a_slow_process_is_waited_for(caplog):
    def slow(link):
        time.sleep(1.0)  # longer than the silence that is allowed to a dead one
        return link.meet("late")

    with caplog.at_level(logging.WARNING, logger="fk_reward"):
        results = together(lambda link: link.meet("early"), slow)
    assert [result for result, _ in results] == [["early", "late"]] * 2
    assert "Waiting for rank 1" in caplog.text
    assert "it is at work" in caplog.text


def test_calls_that_differ_are_refused_everywhere_by_name():
    call = {"prompts": ["a"], "steering": {"num_particles": 4, "reward_scale": 10.0}, "eta": 1.0}
    calls = [call, call, {**call, "prompts": ["b"], "steering": {"num_particles": 8, "reward_scale": 10.0}}]
    results = together(*[lambda link, mine=mine: link.agree(mine) for mine in calls])
    for error, _ in results:
        assert isinstance(error, ProcessFailure)
        assert "rank 0 and rank 2 differ in prompts (['a'] and ['b']), steering.num_particles (4 and 8)" in str(error)
        assert "reward_scale" not in str(error)
    assert [result for result, _ in together(*[lambda link: link.agree(call)] * 3)] == [None] * 3


def test_a_setting_that_one_process_lacks_differs():
    results = together(lambda link: link.agree({"eta": 1.0}), lambda link: link.agree({"eta": 1.0, "height": 64}))
    assert all("height (None and 64)" in str(error) for error, _ in results)


def test_other_rows_are_refused_before_they_are_exchanged():
    results = together(lambda link: link.meet_for("rows of 4"), lambda link: link.meet_for("rows of 2"))
    assert all("Rank 0 is about to exchange rows of 4, rank 1 rows of 2" in str(error) for error, _ in results)


class BrokenStore:
    """A store whose process has ended."""

    def __init__(self):
        self.store = HashStore()

    def add(self, key, amount):
        return self.store.add(key, amount)

    def set(self, key, value):
        raise RuntimeError("Broken pipe")


def test_a_lost_store_is_said():
    link = ProcessLink(BrokenStore(), 1, 2, patience=QUICK)
    with pytest.raises(ProcessFailure, match="Rank 1 has lost the store .* Broken pipe"):
        link.meet("here")
    link.tell(ValueError("nobody hears this"))


def test_one_heart_for_each_store():
    store = HashStore()
    assert start_heart(store, 0, 0.05) is start_heart(store, 0, 0.05)
