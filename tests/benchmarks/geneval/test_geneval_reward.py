"""GenEval's judge as a reward: strict is the judge's verdict, graded is 1 exactly where that is correct."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fk_reward.benchmarks.geneval.judge import Detection, judge
from fk_reward.benchmarks.geneval.official_judge import GenEvalJudge
from fk_reward.benchmarks.geneval.prompts import (
    color_attribution_record,
    color_record,
    counting_record,
    position_record,
    single_object_record,
    two_object_record,
)
from fk_reward.benchmarks.geneval.reward import GenEvalReward, graded_score
from fk_reward.rewards import load_reward

RECORDS = (
    single_object_record("cow"),
    two_object_record("cow", "clock"),
    counting_record("clock", 3),
    color_record("cow", "red"),
    position_record("cow", "left of", "clock"),
    color_attribution_record(("red", "cow"), ("green", "clock")),
)


def random_objects(rng):
    """Some cows and clocks on a grid, so that positions hold often."""
    objects = {}
    for name in ("cow", "clock"):
        boxes = [tuple(10 * rng.integers(0, 3, 2)) for _ in range(rng.integers(0, 5))]
        found = [Detection((x, y, x + 4, y + 4), 0.95) for x, y in boxes]
        if found:
            objects[name] = found
    return objects


def colour_of(rng):
    names = ("red", "green")
    return lambda name, detections: [names[int(detection.box[0]) // 10 % 2] for detection in detections]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["tag"])
def test_one_exactly_where_the_rules_say_correct(record):
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(400):
        objects, color_of = random_objects(rng), colour_of(rng)
        correct, graded = judge(record, objects, color_of).correct, graded_score(record, objects, color_of)
        assert 0 <= graded <= 1
        assert (graded == 1) == correct, objects
        verdicts.append(correct)
    assert 0 < sum(verdicts) < 400, "both verdicts occur"


def test_a_grading_that_forgets_the_colours_would_be_noticed():
    record, wrong = color_record("cow", "red"), {"cow": [Detection((10, 0, 14, 4), 0.95)]}
    blind = {**record, "include": [{"class": "cow", "count": 1}]}
    assert graded_score(blind, wrong, None) == 1
    assert graded_score(record, wrong, colour_of(None)) == 0.5


def test_it_rises_with_each_object():
    record = counting_record("clock", 4)
    scores = [graded_score(record, {"clock": [Detection((0, 0, 4, 4), 0.95)] * n}, None) for n in range(5)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


class Detector:
    """As many clocks as the image is bright."""

    def __call__(self, images):
        return [{"clock": [Detection((0, 0, 4, 4), 0.95)] * round(4 * np.asarray(i).mean() / 255)} for i in images]


@pytest.fixture
def pictures():
    return torch.tensor([0.5, 0.75, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)


def test_strict_and_graded(pictures):
    official = GenEvalJudge(Detector(), color_classifier=lambda *_: [])
    records = [counting_record("clock", 3)]
    prompt = records[0]["prompt"]
    assert GenEvalReward(official, records, strict=True)(pictures, prompt).tolist() == [0, 1, 0]
    graded = GenEvalReward(official, records)(pictures, prompt)
    assert graded[1] == 1
    assert (graded[[0, 2]] < 1).all()


def test_by_name_with_records_of_a_file(tmp_path, pictures):
    (tmp_path / "prompts.jsonl").write_text(json.dumps(counting_record("clock", 2)) + "\n")
    official = GenEvalJudge(Detector(), color_classifier=lambda *_: [])
    reward = load_reward("geneval", judge=official, prompts=tmp_path / "prompts.jsonl")
    assert reward(pictures, "a photo of two clocks")[0] == 1
    with pytest.raises(ValueError, match="no record of the prompt 'a photo of a dog'"):
        reward(pictures, "a photo of a dog")


def test_the_official_prompts_are_known(pictures):
    reward = load_reward("geneval", judge=GenEvalJudge(Detector(), color_classifier=lambda *_: []))
    assert len(reward.records) == 553
    assert reward(pictures, "a photo of a bench").tolist() == [0, 0, 0]


def test_unknown_classes_raise():
    with pytest.raises(ValueError, match="does not know the class 'unicorn'"):
        GenEvalReward(GenEvalJudge(Detector(), lambda *_: []), [single_object_record("unicorn")])
