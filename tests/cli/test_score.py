"""`fk-reward score`."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image

from fk_reward.rewards import CallableReward


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{level}.png" for level in (51, 204)]
    for path, level in zip(paths, (51, 204), strict=True):
        Image.new("RGB", (16 + level % 7, 16), (level,) * 3).save(path)
    return paths


def test_scores_come_in_the_order_of_the_files(run, files):
    result = run("score", *reversed(files), "--prompt", "grey", "--reward", "brightness", "--json", "--batch-size", 1)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["reward"] == "brightness"
    assert [row["reward"] for row in record["scores"]] == pytest.approx([0.8, 0.2])
    assert [row["image"] for row in record["scores"]] == [str(path) for path in reversed(files)]


def test_a_forbidden_image_is_json_too(run, files, monkeypatch):
    monkeypatch.setattr("tests.cli.brightness.CallableReward", lambda fn, name: CallableReward(dark_forbidden, name))
    result = run("score", *files, "--prompt", "grey", "--reward", "brightness", "--json")
    record = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [row["reward"] for row in record["scores"]] == ["-inf", pytest.approx(0.8)]


def dark_forbidden(images, prompts):
    scores = images.mean(dim=(1, 2, 3))
    return scores.masked_fill(scores < 0.5, -torch.inf)


def test_one_prompt_for_each_image(run, files, monkeypatch):
    monkeypatch.chdir(files[0].parent)  # short names, so that no row of the table is folded
    result = run("score", *(path.name for path in files), "-p", "dark", "-p", "light", "-r", "brightness")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if "png" in line]
    assert "dark" in lines[0] and "0.2000" in lines[0]
    assert "light" in lines[1] and "0.8000" in lines[1]


def test_counts_must_fit(refused, files):
    assert "got 3 prompts for 2 images" in refused("score", *files, "-p", "a", "-p", "b", "-p", "c", "-r", "brightness")


def test_a_missing_file_is_named(refused, files, tmp_path):
    assert "no such image file" in refused("score", files[0], tmp_path / "nothing.png", "-p", "a", "-r", "brightness")


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_a_file_that_is_no_image_is_named(refused, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    assert "cannot be read as an image" in refused("score", path, "-p", "a", "-r", "brightness")


def test_a_truncated_image_is_named(refused, files):
    whole = Image.effect_noise((64, 64), 50)
    whole.save(files[0])
    files[0].write_bytes(files[0].read_bytes()[:1000])
    assert "cannot be read as an image" in refused("score", files[0], "-p", "a", "-r", "brightness")


def test_an_unknown_reward_lists_the_known_ones(refused, files):
    message = refused("score", files[0], "-p", "a", "-r", "beauty")
    known = message.partition("Known rewards: ")[2].rstrip(".\n").split(", ")
    assert {"brightness", "clipscore", "shapes-verifier"} <= set(known) and known == sorted(known)


def test_prompt_is_needed(refused, files):
    assert "--prompt" in refused("score", files[0], "-r", "brightness")


@pytest.fixture
def folder(files):
    """The images with their prompts beside them, and one more below."""
    (files[0].parent / "more").mkdir()
    Image.new("RGB", (16, 16), (102,) * 3).save(files[0].parent / "more" / "c.jpg", quality=100)
    for path, text in zip([*files, files[0].parent / "more" / "c.jpg"], ("dark", "light", "grey"), strict=True):
        path.with_suffix(".txt").write_text(text)
    return files[0].parent


def test_a_folder_to_csv_and_that_csv_again(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = run("score", ".", "-r", "brightness", "--out", "scores.csv")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [(row["image"], row["prompt"]) for row in rows] == [
        ("204.png", "light"),
        ("51.png", "dark"),
        ("more/c.jpg", "grey"),
    ]
    assert [float(row["reward"]) for row in rows] == pytest.approx([0.8, 0.2, 0.4], abs=0.01)
    again = run("score", "scores.csv", "-r", "brightness", "--out", "again.csv", "--batch-size", 2)
    assert again.exit_code == 0, again.output
    assert (folder / "again.csv").read_text() == (folder / "scores.csv").read_text()


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_tables_keep_their_other_columns(run, files, monkeypatch, kind):
    monkeypatch.chdir(files[0].parent)
    (files[0].parent / "in.csv").write_text('id,image,prompt\n7,51.png,"a, b"\n8,204.png,c\n')
    assert run("score", "in.csv", "-r", "brightness", "--out", f"out.{kind}").exit_code == 0
    text = (files[0].parent / f"out.{kind}").read_text()
    if kind == "csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        rows = json.loads(text)["scores"] if kind == "json" else [json.loads(line) for line in text.splitlines()]
    assert [(row["id"], row["prompt"]) for row in rows] == [("7", "a, b"), ("8", "c")]
    assert [float(row["reward"]) for row in rows] == pytest.approx([0.2, 0.8])


def test_a_folder_of_generate_knows_its_prompts(run, files):
    results = [{"prompt": "dark", "images": ["51.png"]}, {"prompt": "light", "images": ["204.png"]}]
    (files[0].parent / "result.json").write_text(json.dumps({"results": results}))
    Image.new("RGB", (4, 4)).save(files[0].parent / "lineage-000.png")
    record = json.loads(run("score", files[0].parent, "-r", "brightness", "--json").stdout)
    assert [(row["prompt"], round(row["reward"], 3)) for row in record["scores"]] == [("dark", 0.2), ("light", 0.8)]


def test_a_prompt_that_is_typed_goes_before_all_others(run, folder):
    record = json.loads(run("score", folder, "-p", "typed", "-r", "brightness", "--json").stdout)
    assert {row["prompt"] for row in record["scores"]} == {"typed"} and len(record["scores"]) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,prompt\na.png,b\n", "no column 'image'; it has path, prompt"),
        ("image,prompt\n", "names no images"),
        ("image,prompt\nnothing.png,b\n", "no such image file"),
        ("image,prompt\n,b\n", "line 2: no 'image'"),
        ("image\n51.png\n", "51.png has no prompt"),
    ],
)
def test_tables_that_cannot_be_read(refused, files, text, message):
    table = files[0].parent / "in.csv"
    table.write_text(text)
    assert message in refused("score", table, "-r", "brightness")
