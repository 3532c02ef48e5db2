"""`fk-reward score`."""

from __future__ import annotations

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
