"""The shapes suite in GenEval's format, and its judge."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fk_reward.benchmarks.geneval import shapes
from fk_reward.benchmarks.geneval.prompts import check_record
from fk_reward.benchmarks.geneval.shapes import ShapesJudge, shapes_record, shapes_records
from fk_reward.benchmarks.task import SelfTestError
from fk_reward.rewards.inputs import to_pil
from fk_reward.shapes import (
    TASKS,
    Scene,
    SceneObject,
    all_prompts,
    benchmark_prompts,
    parse_prompt,
    render,
    sample_scene,
    verify,
)


def test_records_say_what_the_prompts_say():
    for prompt in all_prompts():
        record = check_record(shapes_record(prompt))
        assert (record["prompt"], record["tag"]) == (prompt.text, prompt.task)
        assert parse_prompt(record["prompt"]) == prompt
        shapes = Counter({clause["class"]: clause["count"] for clause in record["include"]})
        assert shapes == Counter(spec.shape for spec in prompt.objects)
        colors = {clause["color"] for clause in record["include"] if "color" in clause}
        assert colors == {spec.color for spec in prompt.objects} - {None}


def test_records_of_each_task():
    assert shapes_record(parse_prompt("a photo of three crosses")) == {
        "tag": "counting",
        "include": [{"class": "cross", "count": 3}],
        "exclude": [{"class": "cross", "count": 4}],
        "prompt": "a photo of three crosses",
    }
    assert shapes_record(parse_prompt("a photo of a square below a star"))["include"] == [
        {"class": "star", "count": 1},
        {"class": "square", "count": 1, "position": ["below", 0]},
    ]
    assert shapes_record(parse_prompt("a photo of a red star and an orange cross"))["include"] == [
        {"class": "star", "count": 1, "color": "red"},
        {"class": "cross", "count": 1, "color": "orange"},
    ]


def test_the_suite_is_the_benchmarks():
    assert [record["prompt"] for record in shapes_records(60)] == [prompt.text for prompt in benchmark_prompts(60)]
    assert Counter(record["tag"] for record in shapes_records(60)) == dict.fromkeys(TASKS, 10)


def test_verdicts_are_the_verifiers():
    prompts = benchmark_prompts(12)
    scenes = [sample_scene(prompt, np.random.default_rng(seed)) for seed, prompt in enumerate(prompts)]
    images = to_pil(render([*scenes, *scenes[::-1]]))
    records = [shapes_record(prompt) for prompt in prompts] * 2
    verdicts = ShapesJudge().judge_images(records, images)
    wanted = [
        verify(image, prompt) for image, prompt in zip(render([*scenes, *scenes[::-1]]), prompts * 2, strict=True)
    ]
    assert [verdict.correct for verdict in verdicts] == [verdict.correct for verdict in wanted]
    assert {verdict.correct for verdict in verdicts[:12]} == {True}
    assert not all(verdict.correct for verdict in verdicts[12:])
    assert all(bool(verdict.reason) != verdict.correct for verdict in verdicts)


def test_sizes_may_differ():
    scene = Scene((SceneObject("star", "red", x=0.5, y=0.5, size=0.2),))
    images = [image for size in (64, 128, 64) for image in to_pil(render([scene], image_size=size))]
    records = [shapes_record(parse_prompt(f"a photo of a {color} star")) for color in ("red", "red", "blue")]
    assert [v.correct for v in ShapesJudge().judge_images(records, images)] == [True, True, False]


def test_strictness():
    objects = (SceneObject("star", "red", x=0.25, y=0.5, size=0.13), SceneObject("cross", "blue", 0.75, 0.5, 0.13))
    images, records = to_pil(render([Scene(objects)])), [shapes_record(parse_prompt("a photo of a star"))]
    assert not ShapesJudge().judge_images(records, images)[0].correct
    assert ShapesJudge(strict=False).judge_images(records, images)[0].correct


def test_other_suites_are_refused():
    record = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}
    with pytest.raises(ValueError, match="not a sentence of the shapes world"):
        ShapesJudge().judge_images([record], [Image.new("RGB", (64, 64))])


def test_counts_must_agree():
    with pytest.raises(ValueError, match="a record for each of 0 images, got 1"):
        ShapesJudge().judge_images(shapes_records(1), [])
    assert ShapesJudge().judge_images([], []) == []


def test_self_test_passes():
    ShapesJudge().self_test()
    ShapesJudge(strict=False).self_test()


@pytest.mark.parametrize("correct", [True, False])
def test_self_test_fails_a_verifier_that_says_one_thing(monkeypatch, correct):
    said = verify(render([Scene(())])[0], "a photo of a star")
    always = type(said)(correct, float(correct), "", said.objects)
    monkeypatch.setattr(shapes, "verify", lambda *_, **__: always)
    with pytest.raises(SelfTestError, match="on 6 of 12 images"):
        ShapesJudge().self_test()
