"""Today's code gives what was recorded: images, rewards, weights, ancestors and notes of six calls."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.recorded.calls import CALLS, differences, load_recorded

NUMBERS, NOTES = load_recorded()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_what_was_recorded(name):
    made, notes = CALLS[name].run()
    assert differences(made, NUMBERS[name], exact=False) == []
    assert notes == NOTES[name]


def test_each_record_holds_resampling_and_different_images():
    """Of calls that never resample, or of images that are all alike, nothing would be learnt."""
    for name, numbers in NUMBERS.items():
        assert any(key.endswith(".ancestors") for key in numbers), name
        assert len(np.unique(numbers["images"].reshape(len(numbers["images"]), -1), axis=0)) > 1, name


def resamplers():
    """The table of resamplers, wherever it stands."""
    modules = [module for name, module in sys.modules.items() if name.startswith("fk_reward")]
    return next(module.RESAMPLERS for module in modules if hasattr(module, "RESAMPLERS"))


@pytest.mark.parametrize(("name", "resampling"), [("sd", "systematic"), ("sdxl", "ssp"), ("funnel", "residual")])
def test_saboteur_a_resampler_that_draws_nothing_is_noticed(name, resampling, monkeypatch):
    identity = lambda log_weights, num_samples, generator: torch.arange(num_samples)  # noqa: E731
    monkeypatch.setitem(resamplers(), resampling, identity)
    lines = differences(CALLS[name].run()[0], NUMBERS[name], exact=False)
    assert any(line.startswith("trace.steps.0.ancestors: off by") for line in lines)
    assert any(line.startswith("images: off by") for line in lines)


@pytest.mark.parametrize(
    ("number", "change", "noticed"),
    [
        ("images", 1, False),
        ("images", 2, True),
        ("rewards", 1e-8, False),
        ("rewards", 1e-5, True),
        ("trace.num_model_rows", 1, True),
        ("trace.steps.0.ancestors", 1, True),
        ("trace.lineage.0", 1, True),
    ],
)
def test_what_counts_as_a_difference(number, change, noticed):
    recorded = NUMBERS["sd"] | {"images": NUMBERS["sd"]["images"] // 2}  # so that no level overflows
    changed = recorded | {number: recorded[number] + np.asarray(change, recorded[number].dtype)}
    assert (differences(changed, recorded, exact=False) != []) == noticed
    assert differences(changed, recorded, exact=True) != []


def test_missing_numbers_other_shapes_and_lost_infinities_are_noticed():
    recorded = NUMBERS["prompts"]
    name = "trace.steps.0.rewards"
    assert np.isneginf(recorded[name]).any()
    fewer = {key: value for key, value in recorded.items() if key != name}
    assert differences(fewer, recorded, exact=False) == [f"{name}: only in one of the two"]
    finite = np.maximum(recorded[name], -1)
    for wrong in (recorded[name][:1], recorded[name].astype(np.float64), finite, np.full_like(finite, np.nan)):
        assert len(differences(recorded | {name: wrong}, recorded, exact=False)) == 1
