"""The whole judge: on drawn images with stub detections, and on tiny random models in the hub's layout."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.benchmarks.geneval import judge
from fk_reward.benchmarks.geneval.judge import Detection
from fk_reward.benchmarks.geneval.official_judge import KNOWN_SCENES, PAINTS, GenEvalJudge, draw_scene, known_verdicts
from fk_reward.benchmarks.geneval.prompts import (
    COLORS,
    color_record,
    counting_record,
    geneval_records,
    position_record,
    single_object_record,
)
from fk_reward.benchmarks.task import KnownVerdict, SelfTestError, Verdict, check_known_verdicts
from tests.benchmarks.geneval.tiny_judge import write_clip, write_mask2former

# Drawn images

DRAWN = {draw_scene(objects).tobytes(): objects for _, objects, _ in KNOWN_SCENES}


def drawn_detection(obj, size, score=0.95):
    """The disc of a drawn object."""
    middles = (torch.arange(size) + 0.5) / size
    mask = torch.hypot(middles - obj.x, middles[:, None] - obj.y) < 0.8 * obj.radius
    sides = (obj.x - obj.radius, obj.y - obj.radius, obj.x + obj.radius, obj.y + obj.radius)
    return Detection(tuple(size * side for side in sides), score, mask)


def stub_detector(images):
    """Knows what was drawn; beside each object it is unsure of a second one at the same place."""
    found = []
    for image in images:
        objects = {}
        for obj in DRAWN[image.tobytes()]:
            sure, unsure = (drawn_detection(obj, image.width, score) for score in (0.95, 0.6))
            objects.setdefault(obj.name, []).extend([unsure, sure])
        found.append(objects)
    return found


def stub_colors(image, name, detections):
    """The paint nearest to the median colour of the mask."""
    pixels = torch.from_numpy(np.array(image)).float()
    medians = [pixels[detection.mask].median(dim=0).values for detection in detections]
    distances = [{color: (median - torch.tensor(PAINTS[color])).norm() for color in PAINTS} for median in medians]
    return [min(each, key=each.get) for each in distances]


@pytest.fixture
def stub_judge():
    return GenEvalJudge(stub_detector, stub_colors, batch_size=5)


def test_self_test_passes(stub_judge):
    stub_judge.self_test()


def test_self_test_has_both_verdicts_for_each_task():
    cases = Counter((case.sample["tag"], case.correct) for case in known_verdicts())
    assert set(cases.values()) == {1}
    assert len(cases) == 12


def test_self_test_records_are_such_as_geneval_has():
    for case in known_verdicts():
        like = next(record for record in geneval_records() if record["tag"] == case.sample["tag"])
        assert list(case.sample) == list(like)
        assert [list(clause) for clause in case.sample["include"]] == [list(clause) for clause in like["include"]]


@pytest.mark.parametrize(
    ("module", "name", "value", "prompt"),
    [
        (judge, "COUNTING_THRESHOLD", 0.3, "two clocks"),
        (judge, "_too_many", lambda *_: "", "two clocks"),
        (judge, "_wrong_color", lambda *_: "", "blue stop sign"),
        (judge, "_wrong_place", lambda *_: "", "right of"),
        (judge, "POSITION_OFFSET", 2.0, "left of"),
        (judge, "_too_few", lambda *_: "", "stop sign"),
    ],
)
def test_self_test_fails_a_judge_of_wrong_rules(monkeypatch, stub_judge, module, name, value, prompt):
    monkeypatch.setattr(module, name, value)
    with pytest.raises(SelfTestError, match=prompt):
        stub_judge.self_test()


@pytest.mark.parametrize(
    ("detector", "colors"),
    [
        (lambda images: [{} for _ in images], stub_colors),
        (stub_detector, lambda image, name, detections: ["red"] * len(detections)),
        (lambda images: stub_detector(images)[::-1], stub_colors),
    ],
    ids=["blind", "all is red", "images mixed up"],
)
def test_self_test_fails_wrong_parts(detector, colors):
    with pytest.raises(SelfTestError, match="so its scores would mean nothing"):
        GenEvalJudge(detector, colors).self_test()


def test_self_test_says_what_is_wrong():
    cow = {"prompt": "a cow"}
    cases = [KnownVerdict(cow, Image.new("RGB", (8, 8)), correct) for correct in (True, False)]

    class NoCow:
        def judge_images(self, records, images):
            return [Verdict(False, "no cow") for _ in images]

    with pytest.raises(SelfTestError, match=r"on 1 of 2 images.*'a cow' should be correct \(no cow\)\."):
        check_known_verdicts(NoCow(), cases)


def test_self_test_refuses_a_lost_verdict():
    class Short:
        def judge_images(self, records, images):
            return [Verdict(True, "")]

    cases = [KnownVerdict({"prompt": "a cow"}, Image.new("RGB", (8, 8)), True)] * 2
    with pytest.raises(ValueError, match="shorter"):
        check_known_verdicts(Short(), cases)


def test_drawn_objects_have_their_color():
    for _, objects, _ in KNOWN_SCENES:
        image = draw_scene(objects)
        for obj in objects:
            assert stub_colors(image, obj.name, [drawn_detection(obj, image.width)]) == [obj.color]
            assert obj.color in COLORS


# The judge itself


def test_thresholds_follow_the_task():
    cows = [Detection((0, 0, 4, 4), score) for score in (0.5, 0.95)]
    whole = GenEvalJudge(lambda images: [{"cow": cows} for _ in images], stub_colors)
    records = [counting_record("cow", 2), {**counting_record("cow", 2), "tag": "another"}]
    verdicts = whole.judge_images(records, [Image.new("RGB", (8, 8))] * 2)
    assert [verdict.correct for verdict in verdicts] == [False, True]
    assert verdicts[0].details == {"cow": [[0, 0, 4, 4, 0.95]]}


def test_pictures_are_turned_upright_and_made_rgb():
    seen = []

    def detector(images):
        seen.extend(images)
        return [{} for _ in images]

    sideways = Image.new("RGBA", (8, 4))
    exif = sideways.getexif()
    exif[0x0112] = 6  # turned by a quarter
    sideways.info["exif"] = exif.tobytes()
    GenEvalJudge(detector, stub_colors).judge_images([single_object_record("cow")], [sideways])
    assert [(image.size, image.mode) for image in seen] == [((4, 8), "RGB")]


def test_only_batch_size_pictures_at_a_time(stub_judge):
    sizes = []
    whole = GenEvalJudge(lambda images: sizes.append(len(images)) or [{} for _ in images], stub_colors, batch_size=3)
    whole.judge_images([single_object_record("cow")] * 7, [Image.new("RGB", (8, 8))] * 7)
    assert sizes == [3, 3, 1]


def test_no_pictures_no_verdicts(stub_judge):
    assert stub_judge.judge_images([], []) == []


def test_counts_must_agree(stub_judge):
    with pytest.raises(ValueError, match="a record for each of 1 images, got 2"):
        stub_judge.judge_images([single_object_record("cow")] * 2, [Image.new("RGB", (8, 8))])


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (single_object_record("unicorn"), "class 'unicorn'"),
        (counting_record("mouse", 2), "class 'mouse'"),
        (color_record("cow", "grey"), "color 'grey'"),
        (single_object_record("cow") | {"exclude": [{"class": "yak", "count": 1}]}, "class 'yak'"),
    ],
)
def test_unknown_names_are_refused(stub_judge, record, name):
    with pytest.raises(ValueError, match=f"does not know the {name}"):
        stub_judge.judge_images([record], [Image.new("RGB", (8, 8))])


def test_a_batch_holds_an_image():
    with pytest.raises(ValueError, match="batch_size should be at least 1"):
        GenEvalJudge(stub_detector, stub_colors, batch_size=0)


# Tiny random models


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    detector, clip = write_mask2former(tmp_path_factory.mktemp("m2f")), write_clip(tmp_path_factory.mktemp("clip"))
    return detector, clip


@pytest.fixture(scope="module")
def tiny_judge(folders):
    whole = GenEvalJudge.from_pretrained(*folders, batch_size=4)
    whole.detector.shorter_side, whole.detector.longer_side = 96, 160
    return whole


@pytest.fixture(scope="module")
def judged(tiny_judge):
    """Records of all tasks about what the random detector finds in random images, and the images."""
    rng = np.random.default_rng(0)
    sizes = [(90, 70), (64, 64), (90, 70)]
    sources = [
        Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in sizes
    ]
    records, images = [], []
    for source, objects in zip(sources, tiny_judge.detector(sources), strict=True):
        names = sorted(objects, key=lambda name: -len(objects[name]))
        number = min(max(len(objects[names[0]]), 2), 4)
        about = [single_object_record(names[0]), counting_record(names[0], number)]
        about += [color_record(names[0], color) for color in COLORS]
        about += [position_record(names[0], "above", names[-1]), single_object_record("zebra")]
        records += about
        images += [source] * len(about)
    return records, images


def check_batched(tiny_judge, records, images):
    together = tiny_judge.judge_images(records, images)
    singles = [tiny_judge.judge_images([r], [image])[0] for r, image in zip(records, images, strict=True)]
    assert [(v.correct, v.reason) for v in together] == [(v.correct, v.reason) for v in singles]
    return together


def test_batched_is_single(tiny_judge, judged):
    verdicts = check_batched(tiny_judge, *judged)
    assert {verdict.correct for verdict in verdicts} == {True, False}
    found = {r["tag"] for r, verdict in zip(judged[0], verdicts, strict=True) if verdict.correct}
    assert found >= {"single_object", "colors"}


def test_a_batch_out_of_order_is_noticed(monkeypatch, tiny_judge, judged):
    detect = tiny_judge.detector
    monkeypatch.setattr(tiny_judge, "detector", lambda images: detect(images)[::-1])
    with pytest.raises(AssertionError):
        check_batched(tiny_judge, *judged)


def test_random_models_fail_the_self_test(tiny_judge):
    with pytest.raises(SelfTestError):
        tiny_judge.self_test()
