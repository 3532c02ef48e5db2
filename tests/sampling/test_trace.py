"""SteeringTrace: validation, JSON round trip, lineage, best so far."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.sampling.trace import SteeringTrace
from tests.sampling.random_traces import carry_labels, make_trace


def assert_same(first, second):
    """Field by field: types, dtypes, shapes and bits."""
    assert type(first) is type(second)
    if dataclasses.is_dataclass(first):
        for field in dataclasses.fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name))
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert first.shape == second.shape
        assert torch.equal(first, second)
    elif isinstance(first, tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    else:
        assert first == second


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    particles=st.integers(1, 5),
    steps=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    thumbnails=st.booleans(),
)
def test_json_round_trip_is_exact(groups, particles, steps, seed, thumbnails):
    trace = make_trace(groups=groups, particles=particles, steps=steps, seed=seed, thumbnails=thumbnails)
    assert_same(SteeringTrace.from_json(trace.to_json(thumbnails=True)), trace)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_finite_float_survives(single, double):
    base = make_trace(groups=1, particles=1, steps=1)
    step = dataclasses.replace(
        base.steps[0], rewards=torch.tensor([[single]]), log_weights=torch.tensor([[double]], dtype=torch.float64)
    )
    back = SteeringTrace.from_json(dataclasses.replace(base, steps=(step,)).to_json())
    assert math.copysign(1, back.steps[0].rewards.item()) == math.copysign(1, single)
    assert back.steps[0].rewards.item() == single
    assert back.steps[0].log_weights.item() == double


def test_a_forbidden_finished_image_survives():
    base = make_trace(groups=1, particles=2, thumbnails=False)
    last = dataclasses.replace(
        base.steps[-1],
        rewards=torch.tensor([[-math.inf, 1.0]]),
        log_weights=torch.tensor([[-math.inf, 0.0]]).double(),
        reward_parts={"safety": torch.tensor([[-math.inf, 1.0]])},
    )
    first = [dataclasses.replace(step, reward_parts={"safety": torch.zeros(1, 2)}) for step in base.steps[:-1]]
    trace = dataclasses.replace(base, steps=(*first, last))
    assert_same(SteeringTrace.from_json(trace.to_json()), trace)


@pytest.mark.parametrize(("search", "gradients"), [("fk", 0), ("fk-gradient", None)])
def test_a_file_of_before_backward_passes_were_counted_is_read(search, gradients):
    record = json.loads(make_trace().to_json()) | {"search": search}
    del record["num_gradient_calls"]
    assert SteeringTrace.from_json(json.dumps(record)).cost.gradients == gradients


def test_a_file_of_before_notes_and_provenance_is_read():
    record = json.loads(make_trace().to_json())
    del record["notes"], record["provenance"]
    trace = SteeringTrace.from_json(json.dumps(record))
    assert (trace.notes, trace.provenance) == ((), None)


def test_thumbnails_are_left_out_unless_asked_for(tmp_path):
    trace = make_trace()
    text = trace.to_json(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").read_text() == text
    back = SteeringTrace.from_json(tmp_path / "trace.json")
    assert all(step.thumbnails is None for step in back.steps)
    assert_same(back, SteeringTrace.from_json(str(tmp_path / "trace.json")))


def _edit(change):
    record = json.loads(make_trace().to_json(thumbnails=True))
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "Expected a trace .*not valid JSON"),
        ("[1, 2]", "got other JSON"),
        ('{"format": "something else"}', "got other JSON"),
        (_edit(lambda r: r.update(version=99)), "version 1 .* got 99"),
        (_edit(lambda r: r.pop("selected")), r"missing fields \['selected'\]"),
        (_edit(lambda r: r.update(extra=1)), r"unknown fields \['extra'\]"),
        (_edit(lambda r: r["provenance"].pop("eta")), r"Provenance: missing fields \['eta'\]"),
        (_edit(lambda r: r["steps"][0].pop("ess")), r"TraceStep: missing fields \['ess'\]"),
        (_edit(lambda r: r["steps"].__setitem__(0, "hello")), "TraceStep: missing fields"),
        (_edit(lambda r: r["steps"][0].update(rewards="hello")), "rewards: expected lists of numbers"),
        (_edit(lambda r: r["steps"][0].update(rewards=[[1, 2], [3]])), "rewards: expected lists of numbers"),
        (_edit(lambda r: r["steps"][0].update(rewards=[[0.1] * 4] * 2)), "float32 holds exactly"),
        (_edit(lambda r: r["steps"][0].update(ancestors=[[0.5] * 4] * 2)), "int64 holds exactly"),
        (_edit(lambda r: r["steps"][0]["ess"].__setitem__(0, float("nan"))), "finite numbers only, got NaN"),
        (_edit(lambda r: r["steps"][0]["thumbnails"][0].__setitem__(0, "aaaa")), "PNG images in base64"),
    ],
)
def test_a_wrong_file_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        SteeringTrace.from_json(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        SteeringTrace.from_json(tmp_path / "nothing.json")


def test_a_config_with_nan_cannot_be_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(make_trace(), config={"reward_scale": math.nan}).to_json()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewards": torch.ones(2, 4, dtype=torch.float64)}, TypeError, "rewards: expected a torch.float32"),
        ({"rewards": [[1.0]]}, TypeError, "got list"),
        ({"rewards": torch.ones(8)}, ValueError, "rewards: expected shape"),
        ({"rewards": torch.full((2, 4), math.nan)}, ValueError, "rewards: expected finite"),
        ({"log_weights": torch.full((2, 4), -math.inf).double()}, ValueError, "log_weights: expected finite"),
        ({"log_weights": torch.ones(2, 3).double()}, ValueError, r"log_weights: expected shape \(2, 4\)"),
        ({"ess": torch.ones(4).double()}, ValueError, r"ess: expected shape \(2,\), got \(4,\)"),
        ({"ess": torch.tensor([1.0, 4.1]).double()}, ValueError, r"in \[1, 4\]"),
        ({"ess": torch.tensor([0.5, 4.0]).double()}, ValueError, r"in \[1, 4\]"),
        ({"ancestors": torch.full((2, 4), 4)}, ValueError, r"ancestors: expected indices in \[0, 4\)"),
        ({"ancestors": torch.full((2, 4), -1)}, ValueError, r"ancestors: expected indices in \[0, 4\)"),
        ({"final": True}, ValueError, "final entry takes None"),
        ({"thumbnails": torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)}, ValueError, "thumbnails: expected shape"),
        ({"thumbnails": torch.zeros(2, 4, 3, 8, 8)}, TypeError, "thumbnails: expected a torch.uint8"),
    ],
)
def test_a_malformed_step_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(make_trace().steps[0], **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ("a",)}, "rewards of step 0: expected shape"),
        ({"steps": ()}, "the last entry"),
        ({"steps": make_trace().steps[:-1]}, "the last entry"),
        ({"steps": make_trace().steps[-1:] * 2}, "the last entry"),
        ({"steps": (*make_trace().steps[1::-1], make_trace().steps[-1])}, "indices that rise"),
        ({"steps": (*make_trace().steps[:2], make_trace(particles=5).steps[-1])}, "rewards of step 30: expected shape"),
        ({"num_steps": 7}, "num_steps=7"),
        ({"selected": torch.tensor([[4], [0]])}, r"selected: expected indices in \[0, 4\)"),
        ({"selected": torch.tensor([0, 1])}, "selected: expected shape"),
        ({"reward_scale": torch.ones(3).double()}, "reward_scale: expected shape"),
    ],
)
def test_records_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_trace(), **change)


def test_best_so_far_is_a_running_maximum():
    trace = make_trace(steps=6)
    for group in range(2):
        for index in range(6):
            seen = [step.rewards[group].max().item() for step in trace.steps[: index + 1]]
            assert trace.best_so_far[group, index].item() == max(seen)


@settings(max_examples=40, deadline=None)
@given(particles=st.integers(1, 6), steps=st.integers(1, 7), seed=st.integers(0, 2**32))
def test_lineage_equals_the_histories_of_a_forward_run(particles, steps, seed):
    trace = make_trace(particles=particles, steps=steps, seed=seed, thumbnails=False)
    for group in range(2):
        assert trace.lineage(group).tolist() == carry_labels(trace, group)


class ShiftedTrace(SteeringTrace):
    """Saboteur: reads the ancestors one record too late."""

    def lineage(self, prompt_index=0):
        moved = [step.ancestors for step in self.steps[1:]] + [None]
        steps = [
            dataclasses.replace(step, ancestors=None if step.final else ancestors)
            for step, ancestors in zip(self.steps, moved, strict=True)
        ]
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return SteeringTrace(**{**fields, "steps": tuple(steps)}).lineage(prompt_index)


def test_saboteur_with_shifted_ancestors_is_found():
    fields = {field.name: getattr(make_trace(), field.name) for field in dataclasses.fields(SteeringTrace)}
    broken = ShiftedTrace(**fields)
    assert any(broken.lineage(group).tolist() != carry_labels(broken, group) for group in range(2))


def test_a_prompt_that_is_not_there():
    with pytest.raises(IndexError, match="expected 0 to 1, got 2"):
        make_trace().lineage(2)


def test_summary_names_the_run():
    summary = make_trace().summary()
    assert "2 prompt(s) with 4 particles" in summary
    assert "scored 3 times before the end, resampled 2 times" in summary
    assert "shapes-clipscore" in summary
