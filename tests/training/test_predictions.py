"""Folders of recorded predictions: written, read, refused where something is missing."""

import json

import numpy as np
import pytest

from fk_reward.training.predictions import (
    PredictionRecords,
    is_recording,
    load_recordings,
    nearest_steps,
    with_scores,
)
from tests.training.recorded import LEVELS, write_recording


@pytest.fixture
def recording(tmp_path):
    return write_recording(tmp_path / "a")


def test_what_is_written_is_read(recording):
    read = PredictionRecords.load(recording.folder)
    assert read.prompts == recording.prompts and read.levels == LEVELS and read.num_seeds == 4
    np.testing.assert_array_equal(read.of("grey"), recording.of("grey"))
    grey = read.source(2, 1, 0.6).load().mean().item()
    assert grey == pytest.approx(0.5 + 0.4 * ((recording.of("grey")[2, 1] - 1) / 3 - 0.5), abs=1 / 255)
    assert is_recording(read.folder) and is_recording(f"{read.folder}, {read.folder}") and not is_recording("nowhere")
    assert len(load_recordings(f"{read.folder},{read.folder}")) == 2


def test_the_spread_is_that_within_prompts(recording):
    values = recording.of("grey")
    assert recording.spread("grey") == pytest.approx(np.sqrt(values.var(axis=1, ddof=1).mean()))


def test_a_missing_image_is_named_and_counted(recording):
    recording.image(3, 1, 0.6).unlink()
    recording.image(5, 0, 0.9).unlink()
    with pytest.raises(FileNotFoundError, match=r"0001-0\.6000\.png is missing, and 1 more"):
        PredictionRecords.load(recording.folder)


def test_unfinished_and_damaged_folders_are_refused(recording, tmp_path):
    with pytest.raises(FileNotFoundError, match="keep-predictions"):
        PredictionRecords.load(tmp_path)
    index = recording.folder / "predictions.json"
    content = json.loads(index.read_text())
    for change in ({"levels": [0.3, 0.6]}, {"scores": {}}, {"scores": {"a": [[1.0]]}}, {"prompts": []}):
        index.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match="predictions.json"):
            PredictionRecords.load(recording.folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no index"):
        PredictionRecords.load(recording.folder)


def test_an_unknown_teacher_is_refused_with_the_known_ones(recording):
    with pytest.raises(ValueError, match="It has grey, dark"):
        recording.of("gray")


def test_people_can_be_the_teacher(recording, tmp_path):
    rows = [{"place": place, "seed": seed, "score": place + seed} for place in range(6) for seed in range(4)]
    (tmp_path / "people.json").write_text(json.dumps(rows))
    judged = with_scores(recording, tmp_path / "people.json", "people")
    assert judged.of("people")[5, 3] == 8
    for wrong, message in (
        (rows[1:], "no score of 1 of 24"),
        ([*rows, rows[0]], "there twice"),
        ([*rows[1:], {"place": 6, "seed": 0, "score": 1}], "is not in"),
        ([*rows[1:], {"place": 0, "seed": 0}], "expected place, seed and score"),
    ):
        (tmp_path / "people.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            with_scores(recording, tmp_path / "people.json", "people")


def test_kept_levels_are_the_nearest_that_run():
    levels = [1.0, 0.9, 0.7, 0.4, 0.1]
    assert nearest_steps(levels, [0.45, 0.85]) == {1: 0.9, 3: 0.4}
    with pytest.raises(ValueError, match="nearest to step 3"):
        nearest_steps(levels, [0.45, 0.38])
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        nearest_steps(levels, [0.0])
