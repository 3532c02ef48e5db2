"""Records made by hand are checked as those that were read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fk_reward.training import (
    ImageSource,
    LabelledImage,
    PreferenceDataError,
    PreferencePair,
    RowProblem,
    validate_preferences,
)
from fk_reward.training.preference_data import digest_images
from tests.tiny.image_files import noise

CAT, DOG = ImageSource(noise(0)), ImageSource(noise(1))


def pair(**changes):
    return PreferencePair(**{"prompt": "a cat", "chosen": CAT, "rejected": DOG} | changes)


def labelled(**changes):
    return LabelledImage(**{"prompt": "a cat", "image": CAT, "label": True} | changes)


def test_good_records_pass():
    items = [
        pair(),
        pair(margin=0.0),
        pair(margin=2),
        pair(rejected=CAT, rejected_prompt="a dog"),
        pair(chosen=DOG, rejected=CAT),
    ]
    assert validate_preferences(items) == items
    assert validate_preferences([labelled(), labelled(prompt="", label=False)])
    assert validate_preferences([]) == []


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (pair(prompt=" "), "the prompt is empty"),
        (pair(rejected_prompt=""), "the prompt is empty"),
        (pair(prompt=None), "a prompt must be a string, got NoneType"),
        (pair(chosen="cat.png"), "an image must be an ImageSource, got str"),
        (pair(margin=-1.0), "margin must not be negative, got -1.0"),
        (pair(margin=float("inf")), "margin must be finite"),
        (pair(margin="2"), "margin must be a number, got '2'"),
        (pair(margin=True), "margin must be a number, got True"),
        (pair(rejected=ImageSource(noise(0))), "same image with the same prompt"),
        (pair(rejected=CAT, rejected_prompt="a cat"), "same image with the same prompt"),
        (pair(rejected=ImageSource(Path("gone.png"))), "no such image file: gone.png"),
        (labelled(label=1), "label must be True or False, got 1"),
        (labelled(prompt=3), "a prompt must be a string, got int"),
        (labelled(image=noise(0)), "an image must be an ImageSource, got Image"),
    ],
)
def test_bad_records_are_told(item, reason, caplog):
    good = pair() if isinstance(item, PreferencePair) else labelled()
    with pytest.raises(PreferenceDataError, match=reason) as error:
        validate_preferences([good, item])
    (problem,) = error.value.problems
    assert problem.origin == "row 2"
    assert validate_preferences([good, item], skip_bad_rows=True) == [good]
    assert "Skipped rows: 1 of 2 rows" in caplog.text


def test_the_origin_is_told():
    with pytest.raises(PreferenceDataError, match="a.json:7: the prompt is empty"):
        validate_preferences([pair(prompt="", origin="a.json:7")])


def test_no_warning_where_nothing_is_skipped(caplog):
    with caplog.at_level(logging.WARNING):
        validate_preferences([pair()], skip_bad_rows=True)
    assert caplog.text == ""


def test_each_image_is_decoded_once(monkeypatch, tmp_path):
    noise(0).save(tmp_path / "a.png")
    decoded, load = [], ImageSource.load
    monkeypatch.setattr(ImageSource, "load", lambda self: decoded.append(self.key) or load(self))
    first, again = ImageSource(tmp_path / "a.png"), ImageSource(tmp_path / "a.png")
    assert len(digest_images([pair(chosen=first), pair(chosen=again), pair()])) == 3
    assert len(decoded) == 3


def test_a_problem_reads_as_origin_and_reason():
    assert str(RowProblem("a.json:3", "the prompt is empty")) == "a.json:3: the prompt is empty"
