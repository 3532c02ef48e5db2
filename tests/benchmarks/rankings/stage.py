"""Hand-made copies of the public formats: grey images of known brightness, and what people say of them."""

from __future__ import annotations

import io
import json

from PIL import Image


def grey(level):
    return Image.new("RGB", (28, 28), (level, level, level))


def save(folder, name, level):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    grey(level).save(path)
    return name


def write_hpdv2(folder):
    """Two prompts of three images; brightness agrees with people but on one pair of the first prompt, of which one is
    tied by people."""
    names = {level: save(folder / "test", f"{level}.png", level) for level in (40, 90, 140, 200)}
    rows = [
        {"prompt": "first", "image_path": [names[200], names[140], names[40]], "rank": [1, 3, 2]},
        {"prompt": "second", "image_path": [names[90], names[40], names[200]], "rank": [2, 2, 1]},
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


def write_imagereward(folder):
    names = [save(folder / "test_images", f"part/{level}.webp", level) for level in (200, 100)]
    (folder / "test.json").write_text(
        json.dumps([{"id": "a", "prompt": "a hat", "generations": names, "ranking": [2, 1]}])
    )
    return folder


def write_hpdv3(folder):
    names = [save(folder, f"images/{level}.png", level) for level in (200, 100)]
    row = {"prompt": "a hat", "path1": names[0], "path2": names[1], "confidence": 0.9, "model1": "a", "model2": "b"}
    (folder / "test.json").write_text(json.dumps([row]))
    return folder


def write_genai(folder):
    marks = {"DALLE_3": [5, 5, 4], "SDXL_Turbo": [2, 3, 3], "SDXL_Base": [3, 3, 2]}
    for name, level in zip(marks, (200, 90, 40), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        grey(level).save(folder / name / "00000.jpeg")
    (folder / "genai_image.json").write_text(json.dumps({"00000": {"prompt": "two cups", "models": marks}}))
    return folder


def mmrb2_pair(first, second, *, chosen="A", prompt=(("text", "a hat"),)):
    return {
        "id": "x",
        "response_a": {"model_name": "a", "response_content": [["image", first]]},
        "response_b": {"model_name": "b", "response_content": [["image", second]]},
        "chosen": chosen,
        "prompt_content": [list(part) for part in prompt],
    }


def write_mmrb2(folder, **changes):
    names = [save(folder, f"images/{level}.jpg", level) for level in (200, 100)]
    pairs = [mmrb2_pair(*names, **changes), mmrb2_pair(*names, chosen="B")]
    (folder / "t2i.json").write_text(json.dumps({"pairs": pairs}))
    return folder


def content(level):
    buffer = io.BytesIO()
    grey(level).save(buffer, format="JPEG")
    return buffer.getvalue()


def write_pickapic(folder):
    """A right pair, a tie of people, and a row without a label."""
    import pyarrow
    from pyarrow import parquet

    rows = {
        "caption": ["a hat", "a cup", "a cow"],
        "jpg_0": [content(200), content(90), content(9)],
        "jpg_1": [content(100), content(90), content(8)],
        "label_0": [1.0, 0.5, 0.0],
        "label_1": [0.0, 0.5, 0.0],
        "has_label": [True, True, False],
    }
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(rows), folder / "test_unique-00000-of-00001.parquet")
    return folder


WRITERS = {
    "hpdv2": write_hpdv2,
    "hpdv3": write_hpdv3,
    "imagereward": write_imagereward,
    "pickapic": write_pickapic,
    "genai-bench": write_genai,
    "mmrb2": write_mmrb2,
}
