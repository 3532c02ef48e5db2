"""Batches taken apart and put together again: every nesting, what is shared, and outputs that do not add up."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.pipelines.batching import BatchLayout, batch_rows


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
