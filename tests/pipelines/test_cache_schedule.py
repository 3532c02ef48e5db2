"""Caching schedules and the JSON of ECAD."""

from __future__ import annotations

import json

import pytest

from fk_reward.pipelines import CacheSchedule

PARTS = (("0", "attn1"), ("0", "attn2"), ("0", "ff"), ("1", "attn1"), ("1", "attn2"), ("1", "ff"))

# Written by hand after schedules_in_paper/pixart_alpha_256/ours_fast.json of github.com/aniaggarwal/ecad (fb9e0e5).
PIXART = {
    "cache_schedule": {
        "num_blocks": 2,
        "num_inference_steps": 2,
        "name": "by-hand",
        "attributes": {"num_affected_steps": 1},
        "schedule": {
            "000": {block: {"attn1": True, "attn2": True, "ff": True} for block in "01"},
            "001": {
                "0": {"attn1": False, "attn2": True, "ff": False},
                "1": {"attn1": True, "attn2": False, "ff": False},
            },
        },
    },
    "config": {"guidance": 4.5},
    "metrics": {"macs": 1.0},
}

# And after schedules_in_paper/flux_256/ours_fast.json, whose blocks of one stream are counted by themselves.
FLUX = {
    "cache_schedule": {
        "num_blocks": 1,
        "num_inference_steps": 1,
        "name": "flux",
        "attributes": {},
        "schedule": {
            "000": {
                "0": {"full_attn": True, "full_ff": True, "full_ff_context": False},
                "single_0": {"single_attn": True, "single_proj_mlp": False, "single_proj_out": True},
            }
        },
        "num_single_blocks": 1,
    },
    "config": {},
    "metrics": {},
}


def test_a_schedule_of_ecad_is_read():
    schedule = CacheSchedule.from_dict(PIXART)
    assert schedule.components == PARTS and schedule.blocks == ("0", "1")
    assert schedule.steps == ((True,) * 6, (False, True, False, True, False, False))
    assert (schedule.name, schedule.num_steps, schedule.share) == ("by-hand", 2, 8 / 12)
    assert schedule.config == {"guidance": 4.5} and schedule.metrics == {"macs": 1.0}


@pytest.mark.parametrize("data", [PIXART, FLUX])
def test_what_is_written_is_what_was_read(data, tmp_path):
    path = CacheSchedule.from_dict(data).save(tmp_path / "schedule.json")
    assert json.loads(path.read_text()) == data
    assert CacheSchedule.load(path) == CacheSchedule.from_dict(data)


def test_every_k():
    schedule = CacheSchedule.every(PARTS, num_steps=7, interval=3, first=1)
    assert [all(row) for row in schedule.steps] == [True, True, False, False, True, False, False]
    assert [any(row) for row in schedule.steps] == [all(row) for row in schedule.steps]
    one = CacheSchedule.every(PARTS, num_steps=3, interval=3, only=["attn2"])
    assert one.steps[1] == (True, False, True, True, False, True) and one.name == "every-3-attn2"
    assert CacheSchedule.every(PARTS, num_steps=3, interval=1).share == 1.0


def changed(change):
    data = json.loads(json.dumps(PIXART))
    change(data["cache_schedule"])
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inner: inner.pop("schedule"), "should hold"),
        (lambda inner: inner["schedule"].pop("001"), "steps 0 to 1, each once"),
        (lambda inner: inner["schedule"]["001"].pop("1"), "Step 1 names other blocks"),
        (lambda inner: inner["schedule"]["001"]["1"].update(ff=1), "True or False, got 1"),
        (lambda inner: inner["schedule"]["000"]["0"].update(custom_compute_attn={}), "'custom_compute_attn'"),
    ],
)
def test_damaged_files_are_named(change, message, tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(changed(change)))
    with pytest.raises(ValueError, match=message) as raised:
        CacheSchedule.load(path)
    assert str(path) in str(raised.value)


def test_tables_of_another_shape():
    with pytest.raises(ValueError, match="at least one step"):
        CacheSchedule(components=PARTS, steps=())
    with pytest.raises(ValueError, match="each component once"):
        CacheSchedule(components=PARTS * 2, steps=((True,) * 12,))
    with pytest.raises(ValueError, match="Step 0 should have 6"):
        CacheSchedule(components=PARTS, steps=((True,),))
    with pytest.raises(ValueError, match="interval should be at least 1"):
        CacheSchedule.every(PARTS, num_steps=3, interval=0)
