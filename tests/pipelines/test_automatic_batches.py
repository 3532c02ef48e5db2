"""`"auto"`: half as many after each out-of-memory error, said aloud and kept for the next call."""

from __future__ import annotations

import logging

import pytest
import torch

from fk_reward import BatchSizes
from fk_reward.pipelines.batching import BatchLimit
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered

ARGUMENTS = {"num_particles": 8, "num_images_per_prompt": 8, "num_inference_steps": 3, "output_type": "pt"}


class SmallMemory:
    """Functions that run out of memory above so many rows; `rows` keeps what was tried."""

    def __init__(self, most):
        self.most, self.rows = most, []

    def check(self, tensor):
        self.rows.append(len(tensor))
        if len(tensor) > self.most:
            raise torch.OutOfMemoryError("out of memory")

    def around(self, function):
        def limited(tensor, *args, **kwargs):
            self.check(tensor)
            return function(tensor, *args, **kwargs)

        return limited


class GreedyReward(BrightnessReward):
    def __init__(self, memory):
        self.memory = memory

    def score(self, images, prompts):
        self.memory.check(images)
        return super().score(images, prompts)


def starve(stage, most):
    """A steered pipeline of which one stage runs out of memory above `most` rows."""
    pipe, memory = tiny.make_sd(), SmallMemory(most)
    reward = GreedyReward(memory) if stage == "reward" else BrightnessReward()
    if stage == "particle":
        pipe.unet.forward = memory.around(pipe.unet.forward)
    if stage == "decode":
        pipe.vae.decode = memory.around(pipe.vae.decode)
    return steered(pipe, reward), memory


STAGES = [("particle", 5, 2), ("decode", 3, 2), ("reward", 3, 2)]
"""Stage, most rows (guidance makes two of a particle), and the size of batches that fits."""


@pytest.mark.parametrize(("stage", "most", "fits"), STAGES)
def test_halves_until_it_fits_says_so_and_remembers(stage, most, fits, caplog):
    wrapped, memory = starve(stage, most)
    name = f"{stage}_batch_size"
    with caplog.at_level(logging.WARNING, logger="fk_reward"):
        out = wrapped("x", generator=generator(), **{name: "auto"}, **ARGUMENTS)
    said = [record.getMessage() for record in caplog.records]
    assert [message for message in said if "auto" in message and "memory" in message] == [
        f'{name}="auto": 8 at once are more than memory holds, now 4.',
        f'{name}="auto": 4 at once are more than memory holds, now {fits}.',
    ]
    memory.most = 100
    whole = wrapped("x", generator=generator(), **ARGUMENTS)
    torch.testing.assert_close(out.images, whole.images, rtol=0, atol=1e-5)
    assert out.trace.num_model_rows == whole.trace.num_model_rows == 3 * 16
    memory.rows.clear()
    wrapped("x", generator=generator(), **{name: "auto"}, **ARGUMENTS)
    assert max(memory.rows) <= most
    wrapped.batch_sizes = BatchSizes()  # forgets
    memory.rows.clear()
    wrapped("x", generator=generator(), **{name: "auto"}, **ARGUMENTS)
    assert max(memory.rows) > most


@pytest.mark.parametrize("stage", ["particle", "decode", "reward"])
def test_at_one_the_error_goes_through(stage):
    wrapped, memory = starve(stage, 0)
    with pytest.raises(torch.OutOfMemoryError):
        wrapped("x", **{f"{stage}_batch_size": "auto"}, **ARGUMENTS)
    assert [rows // (2 if stage == "particle" else 1) for rows in memory.rows] == [8, 4, 2, 1]


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("stage", ["particle", "decode", "reward"])
def test_sizes_that_were_chosen_are_not_changed(stage, size):
    wrapped, memory = starve(stage, 2)
    with pytest.raises(torch.OutOfMemoryError):
        wrapped("x", **{f"{stage}_batch_size": size}, **ARGUMENTS)
    assert len(memory.rows) == 1


def test_a_decoder_of_ones_own():
    memory = SmallMemory(3)
    wrapped = steered(tiny.make_sd())
    wrapped.preview = memory.around(lambda latents: torch.full((len(latents), 3, 8, 8), 0.5))
    wrapped("x", decode_batch_size="auto", **ARGUMENTS)
    assert memory.rows[:6] == [8, 4, 2, 2, 2, 2]


def test_the_failed_attempt_has_let_go_of_its_tensors_before_the_cache_is_emptied(monkeypatch):
    """While an error is being handled, its traceback holds them."""
    events = []

    class Activation:
        def __del__(self):
            events.append("freed")

    def attempt(size):
        _activation = Activation()
        if size > 1:
            raise torch.OutOfMemoryError("out of memory")
        return size

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("emptied"))
    assert BatchLimit("decode_batch_size", "auto", found={}).run(2, attempt) == 1
    assert events == ["freed", "emptied", "freed"]
