"""Watching a call while it runs."""

from __future__ import annotations

import threading

import pytest
import torch

from fk_reward.pipelines import watch_steps
from tests.pipelines.calls import BrightnessReward, generator, steered


def call(pipe, **options):
    return pipe("a cat", num_particles=3, num_inference_steps=5, generator=generator(), **options)


def test_what_is_told_stands_in_the_trace(tiny_sd):
    pipe, told = steered(tiny_sd(), BrightnessReward()), []
    with watch_steps(told.append):
        out = call(pipe)
    assert [id(step) for step in told] == [id(step) for step in out.trace.steps]
    assert told[-1].final and not told[0].final
    call(pipe)
    assert len(told) == len(out.trace.steps), "nothing is told after the block"


def test_a_watcher_can_stop_a_call_which_leaves_the_pipeline_as_it_was(tiny_sd):
    class Enough(Exception):
        pass

    def stop(step):
        raise Enough

    pipe = steered(tiny_sd(), BrightnessReward())
    expected = call(pipe).rewards
    with pytest.raises(Enough), watch_steps(stop):
        call(pipe)
    assert torch.equal(call(pipe).rewards, expected)


def test_other_threads_are_not_watched(tiny_sd):
    told, pipe = [], steered(tiny_sd(), BrightnessReward())
    with watch_steps(told.append):
        thread = threading.Thread(target=call, args=(pipe,))
        thread.start()
        thread.join()
    assert told == []
