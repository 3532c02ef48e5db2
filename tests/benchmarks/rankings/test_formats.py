"""Each public format on a hand-made copy: prompts, images and their order, and what is refused with its row."""

from __future__ import annotations

import json

import pytest

from fk_reward.benchmarks.rankings.formats import READERS, RankedImages, rankings_digest
from tests.benchmarks.rankings.stage import WRITERS, mmrb2_pair, write_mmrb2, write_pickapic

ORDERS = {
    "hpdv2": [("first", (-1, -3, -2), (200, 140, 40)), ("second", (-2, -2, -1), (90, 40, 200))],
    "hpdv3": [("a hat", (1, 0), (200, 100))],
    "imagereward": [("a hat", (-2, -1), (200, 100))],
    "pickapic": [("a hat", (1, 0), (200, 100)), ("a cup", (0.5, 0.5), (90, 90))],
    "genai-bench": [("two cups", (14 / 3, 8 / 3, 8 / 3), (200, 90, 40))],
    "mmrb2": [("a hat", (1, 0), (200, 100)), ("a hat", (0, 1), (200, 100))],
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_read(name, tmp_path):
    pytest.importorskip("pyarrow")
    rankings = READERS[name](WRITERS[name](tmp_path))
    assert [(one.prompt, one.order) for one in rankings] == [(prompt, order) for prompt, order, _ in ORDERS[name]]
    for one, (_, _, levels) in zip(rankings, ORDERS[name], strict=True):
        seen = [float(image.float().mean()) for image in one.load()]
        assert seen == pytest.approx(levels, abs=2)  # JPEG and WebP


def test_the_file_itself_may_be_named(tmp_path):
    folder = WRITERS["hpdv3"](tmp_path)
    (tmp_path / "test.json").rename(tmp_path / "other.json")
    assert len(READERS["hpdv3"](folder / "other.json")) == 1
    with pytest.raises(FileNotFoundError, match=r"test\.json"):
        READERS["hpdv3"](folder)


def test_rows_without_a_label_are_left_out_loudly(tmp_path, caplog):
    pytest.importorskip("pyarrow")
    assert len(READERS["pickapic"](write_pickapic(tmp_path))) == 2
    assert "1 of 3 rows have no label" in caplog.text


def test_a_missing_image_names_its_row(tmp_path):
    (ranking,) = READERS["hpdv3"](WRITERS["hpdv3"](tmp_path))
    (tmp_path / "images" / "100.png").unlink()
    with pytest.raises(ValueError, match=r"test\.json:1: no such image file: .*100\.png"):
        ranking.load()


def damage(name, folder, change):
    """Change the first object of a copy's file."""
    path = next(folder.glob("*.json"))
    content = json.loads(path.read_text())
    change(content[0] if isinstance(content, list) else content)
    path.write_text(json.dumps(content))
    return READERS[name](folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hpdv2", lambda row: row.pop("rank"), r"test\.json:1 has no 'rank'; it has image_path, prompt"),
        ("hpdv2", lambda row: row.update(rank=[1, 2]), "got 3 images and 2 places"),
        ("hpdv2", lambda row: row.update(rank=["1", 2, 3]), "rank must be a number"),
        ("imagereward", lambda row: row.update(generations="a.png"), "a list of paths"),
        ("hpdv3", lambda row: row.update(path1=None), "path1 should be a text"),
        ("hpdv3", lambda row: row.update(prompt=" "), "the prompt is empty"),
        ("genai-bench", lambda rows: rows.update({"00000": {"prompt": "x"}}), "with prompt and models"),
        ("genai-bench", lambda rows: rows["00000"]["models"].update(DALLE_3=[]), "DALLE_3 should be a list of numbers"),
        ("mmrb2", lambda rows: rows.update(pairs=[]), "a list of pairs"),
        ("mmrb2", lambda rows: rows["pairs"][0].update(chosen="C"), "chosen should be A or B"),
    ],
)
def test_refused(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        damage(name, WRITERS[name](tmp_path), change)


def test_tasks_of_mmrb2_with_other_prompts_are_refused_by_name(tmp_path):
    prompt = (("image", "input_images/a.jpg"), ("text", "make it blue"))
    with pytest.raises(ValueError, match=r"pair 1: .*task text-to-image \(t2i\.json\)"):
        READERS["mmrb2"](write_mmrb2(tmp_path, prompt=prompt))
    pair = mmrb2_pair("a.jpg", "b.jpg")
    pair["response_a"]["response_content"].append(["text", "done"])
    (tmp_path / "t2i.json").write_text(json.dumps({"pairs": [pair]}))
    with pytest.raises(ValueError, match="each response one image"):
        READERS["mmrb2"](tmp_path)


def test_shapes_are_rendered():
    rankings = READERS["shapes"](None)
    assert len(rankings) == 210
    assert {one.order for one in rankings} == {(1.0, 0.0), (0.0, 1.0)}


def test_the_digest_tells_orders_apart(tmp_path):
    (one,) = READERS["hpdv3"](WRITERS["hpdv3"](tmp_path))
    other = RankedImages(one.origin, one.prompt, one.images, one.order[::-1])
    assert rankings_digest([one]) != rankings_digest([other])
