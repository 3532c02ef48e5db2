"""Batches: sizes as typed, rows taken apart and joined, and out-of-memory errors."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward import BatchSizes
from fk_reward.pipelines.batching import BatchLayout, BatchLimit, batch_rows
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered


@settings(max_examples=50, deadline=None)
@given(blocks=st.integers(1, 3), particles=st.integers(1, 9), size=st.integers(1, 9))
def test_parts_in_order_make_the_whole(blocks, particles, size):
    layout = BatchLayout.of(blocks * particles, num_particles=particles)
    value = torch.arange(blocks * particles * 2).view(-1, 2)
    parts = [layout.take(value, start, min(start + size, particles)) for start in range(0, particles, size)]
    assert all(len(part) % blocks == 0 for part in parts)
    assert torch.equal(layout.join(parts), value)


def test_each_part_holds_its_particles_in_every_block():
    layout = BatchLayout(num_blocks=2, num_particles=3)
    unconditional, conditional = torch.zeros(3), torch.arange(1.0, 4.0)
    assert layout.take(torch.cat([unconditional, conditional]), 1, 3).tolist() == [0, 0, 2, 3]


def test_a_batch_that_does_not_hold_the_particles_evenly_is_split_by_rows():
    assert BatchLayout.of(7, num_particles=3) == BatchLayout(1, 7)
    assert BatchLayout.of(2, num_particles=3) == BatchLayout(1, 2)


def test_nested_arguments():
    rows = torch.arange(4)
    arguments = {
        "sample": rows,
        "timestep": torch.tensor(7),
        "added_cond_kwargs": {"time_ids": rows.view(4, 1), "image_embeds": [rows, (rows, None)], "scale": 0.5},
        "mask": torch.ones(1, 4),
    }
    part = BatchLayout(2, 2).take(arguments, 1, 2)
    assert part["sample"].tolist() == [1, 3]
    assert part["added_cond_kwargs"]["time_ids"].flatten().tolist() == [1, 3]
    first, (second, nothing) = part["added_cond_kwargs"]["image_embeds"]
    assert first.tolist() == second.tolist() == [1, 3]
    assert nothing is None
    assert part["added_cond_kwargs"]["scale"] == 0.5
    assert part["timestep"] is arguments["timestep"]
    assert part["mask"] is arguments["mask"]


def test_tables_of_positions_stay_whole_also_where_their_length_is_that_of_the_batch():
    layout, table = BatchLayout(1, 4), torch.zeros(4, 3)
    rope = [torch.arange(1), torch.arange(4), torch.arange(4)]  # as Kandinsky 5 has them
    arguments = {"img_ids": table, "image_rotary_emb": (table, table), "encoder_hidden_states": table}
    part = layout.take({**arguments, "visual_rope_pos": rope}, 0, 1)
    assert all(ours is theirs for ours, theirs in zip(part["visual_rope_pos"], rope, strict=True))
    assert part["img_ids"] is table
    assert part["image_rotary_emb"][1] is table
    assert len(part["encoder_hidden_states"]) == 1
    assert len(layout.take({"img_ids": torch.zeros(4, 9, 3)}, 0, 1)["img_ids"]) == 1  # a table for each row


def test_outputs_of_every_kind():
    layout, parts = BatchLayout(2, 2), (torch.tensor([0, 2]), torch.tensor([1, 3]))
    whole = [0, 1, 2, 3]
    assert layout.join([(part, None) for part in parts])[0].tolist() == whole
    assert layout.join([[[part], part] for part in parts])[0][0].tolist() == whole
    output = layout.join([UNet2DConditionOutput(sample=part) for part in parts])
    assert isinstance(output, UNet2DConditionOutput)
    assert output.sample.tolist() == whole


@pytest.mark.parametrize("parts", [[torch.zeros(2), torch.zeros(1)], [torch.tensor(0.0)] * 2, [torch.zeros(4)] * 2])
def test_outputs_that_do_not_add_up(parts):
    with pytest.raises(ValueError, match="cannot be run in micro-batches"):
        BatchLayout(2, 2).join(parts)


def test_rows_of_the_batch_are_those_of_the_first_tensor_with_sides():
    assert batch_rows((torch.tensor(1.0),), {"timestep": torch.zeros(9), "sample": torch.zeros(3, 2)}) == 3
    assert batch_rows(("text",), {"scale": 1.0}) == 0


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
