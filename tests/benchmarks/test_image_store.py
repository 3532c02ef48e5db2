"""GenEval's folder layout, notes about images, manifests, and files that are damaged or missing."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.benchmarks.drawing import describe_model, make_manifest
from fk_reward.benchmarks.image_store import (
    MADE,
    PromptFolder,
    open_run,
    prompt_folders,
    read_manifest,
    read_sample,
    refuse_mixed_runs,
)
from fk_reward.durable_files import write_whole
from fk_reward.rewards import CallableReward
from tests.benchmarks.image_stage import BRIGHTNESS, MODEL, RECORDS, SETTINGS, task_of

RECORD = {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"}


def images(*colors):
    return [Image.new("RGB", (16, 12), color) for color in colors]


@pytest.fixture
def folder(tmp_path):
    folder = PromptFolder(tmp_path, 3)
    folder.write(RECORD, images("red", "blue"), note={"seconds": 2.0})
    return folder


def as_the_official_script_reads(root):
    """What `evaluate_images.py` of GenEval visits: its loops and conditions, in our words."""
    seen = []
    for name in os.listdir(root):
        if os.path.isdir(os.path.join(root, name)) and name.isdigit():
            with open(os.path.join(root, name, "metadata.jsonl")) as file:
                metadata = json.load(file)
            for image in sorted(os.listdir(os.path.join(root, name, "samples"))):
                path = os.path.join(root, name, "samples", image)
                if os.path.isfile(path) and re.match(r"\d+\.png", image):
                    seen.append((metadata, np.asarray(Image.open(path))))
    return seen


def test_the_official_script_reads_it(folder, tmp_path):
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == [
        "00003/made.json",
        "00003/metadata.jsonl",
        "00003/samples/0000.png",
        "00003/samples/0001.png",
    ]
    folder.write_note("verdicts", {"verdicts": []})
    (tmp_path / ".00004.draft").mkdir()
    (first, red), (second, blue) = as_the_official_script_reads(tmp_path)
    assert first == second == RECORD == folder.read_metadata()
    assert (red == (255, 0, 0)).all() and (blue == (0, 0, 255)).all()
    assert [f.index for f in prompt_folders(tmp_path)] == [3]


def test_folders_of_the_official_script_are_read(tmp_path):
    samples = tmp_path / "00010" / "samples"
    samples.mkdir(parents=True)
    for name, color in (("00000.png", "red"), ("00002.png", "lime"), ("00010.png", "blue"), ("grid.png", "black")):
        Image.new("RGBA", (4, 4), color).save(samples / name)
    folder = PromptFolder(tmp_path, 10)
    assert [image.getpixel((0, 0)) for image in folder.read_images()] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert folder.read_note(MADE) is None


def test_a_note_is_about_these_very_pictures(folder):
    assert folder.read_note(MADE) == {"seconds": 2.0}
    folder.write_note("scores", {"scores": {"a": [1.0, 2.0]}})
    assert folder.read_note("scores") == {"scores": {"a": [1.0, 2.0]}}
    assert not list(folder.path.glob(".*"))
    Image.new("RGB", (16, 12), "green").save(folder.path / "samples" / "0001.png")
    assert folder.read_note("scores") is None
    assert folder.read_note(MADE) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "extra", "note cut", "no digests", "a list"])
def test_a_damaged_prompt_is_not_finished(folder, damage):
    image, note = folder.path / "samples" / "0000.png", folder.path / "made.json"
    if damage == "cut":
        image.write_bytes(image.read_bytes()[:-20])
    elif damage == "empty":
        image.write_bytes(b"")
    elif damage == "gone":
        image.unlink()
    elif damage == "extra":
        image.with_name("0002.png").write_bytes(image.read_bytes())
    elif damage == "note cut":
        note.write_text(note.read_text()[:30])
    else:
        note.write_text("{}" if damage == "no digests" else "[]")
    assert folder.read_note(MADE) is None


@pytest.mark.parametrize("keep", [0, 8, 40, 60])
def test_a_cut_picture_is_named(tmp_path, keep):
    path = tmp_path / "0000.png"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    read_sample(path)
    path.write_bytes(path.read_bytes()[: keep * path.stat().st_size // 100])
    with pytest.raises(ValueError, match=r"0000\.png cannot be read as an image: .*Generate again"):
        read_sample(path)


def test_a_text_is_no_image(tmp_path):
    (tmp_path / "0000.png").write_text("not an image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_sample(tmp_path / "0000.png")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"metadata\.jsonl is missing"),
        ('{"prompt": "a pho', ValueError, "metadata.jsonl: not valid JSON"),
        ("[1]", ValueError, "one JSON object with a prompt"),
        ('{"tag": "colors"}', ValueError, "one JSON object with a prompt"),
    ],
)
def test_a_missing_or_broken_record(folder, content, error, message):
    path = folder.path / "metadata.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        folder.read_metadata()


def test_a_prompt_without_images(folder):
    for path in folder.image_paths():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"samples holds no image"):
        folder.read_images()


@pytest.mark.parametrize("name", ["nothing", "other", "file"])
def test_a_folder_without_prompts(tmp_path, name):
    (tmp_path / "other" / "123").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="holds no images in GenEval's layout"):
        prompt_folders(tmp_path / name)


def test_writing_replaces_what_is_there_and_old_drafts(folder, tmp_path):
    (tmp_path / ".00003.draft" / "samples").mkdir(parents=True)
    (tmp_path / ".00003.draft" / "samples" / "0009.png").write_bytes(b"half")
    folder.write_note("verdicts", {})
    folder.write(RECORD, images("green"), note={"seconds": 1.0})
    assert [path.name for path in folder.image_paths()] == ["0000.png"]
    assert folder.read_note("verdicts") is None
    assert [path.name for path in tmp_path.iterdir()] == ["00003"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def fail(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", fail)
        write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


ABOUT = {"command": "fk-reward geneval --out results"}


def manifest_of(settings=SETTINGS, **changes):
    return make_manifest(settings, **{"task": task_of(), "model": MODEL, "reward": None, **changes})


def test_it_says_what_was_run(tmp_path):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    found = read_manifest(tmp_path / "fk")
    assert found["command"] == ABOUT["command"]
    assert found["settings"] == json.loads(json.dumps(SETTINGS.to_dict()))
    assert found["suite"]["name"] == "shapes" and found["suite"]["num_prompts"] == len(RECORDS)
    assert set(found["versions"]) == {"fk_reward", "torch", "diffusers", "transformers"}
    assert found["versions"]["torch"] == torch.__version__


def test_the_same_run_goes_on_whatever_the_command(tmp_path):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    before = (tmp_path / "fk" / "manifest.json").read_bytes()
    (tmp_path / "fk" / "00000").mkdir()
    open_run(tmp_path / "fk", manifest_of(), about={"command": "accelerate launch"})
    assert (tmp_path / "fk" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": FKSteeringConfig(potential="sum")}, r"settings\.search\.potential 'difference' -> 'sum'"),
        ({"batch_size": 32}, r"settings\.batch_size 16 -> 32"),
        ({"reward": "other"}, r"settings\.reward 'brightness' -> 'other', reward\.name"),
    ],
)
def test_another_config_is_refused(tmp_path, changes, message):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    before = (tmp_path / "fk" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=rf"holds results of other settings \({message}.*choose another folder"):
        open_run(tmp_path / "fk", manifest_of(replace(SETTINGS, **changes)), about=ABOUT)
    assert (tmp_path / "fk" / "manifest.json").read_bytes() == before
    open_run(tmp_path / "new" / "fk", manifest_of(replace(SETTINGS, **changes)), about=ABOUT)


def test_other_versions_and_weights_are_refused(tmp_path):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    older = manifest_of()
    older["versions"] = {**older["versions"], "torch": "1.0"}
    with pytest.raises(ValueError, match=r"versions\.torch '.*' -> '1\.0'"):
        open_run(tmp_path / "fk", older, about=ABOUT)
    layers = [CallableReward(nn.Bilinear(2, 2, 2), "layer") for _ in range(2)]
    open_run(tmp_path / "layer" / "fk", manifest_of(reward=layers[0]), about=ABOUT)
    open_run(tmp_path / "layer" / "fk", manifest_of(reward=layers[0]), about=ABOUT)
    with pytest.raises(ValueError, match=r"reward\.weights"):
        open_run(tmp_path / "layer" / "fk", manifest_of(reward=layers[1]), about=ABOUT)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (
            replace(SETTINGS, suite="official"),
            {"task": replace(task_of(), name="official")},
            r"suite\.name 'shapes' -> 'official'",
        ),
        (SETTINGS, {"task": task_of(RECORDS[:3])}, r"suite\.num_prompts 4 -> 3, suite\.digest"),
        (SETTINGS, {"model": {**MODEL, "weights": "f"}}, r"model\.weights"),
        (replace(SETTINGS, seed=1), {}, "seed 0 -> 1"),
        (replace(SETTINGS, num_samples=1), {}, "num_samples 2 -> 1"),
        (replace(SETTINGS, num_steps=20), {}, "num_steps 10 -> 20"),
    ],
)
def test_runs_that_cannot_be_compared_do_not_share_a_folder(tmp_path, settings, changes, message):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    other = manifest_of(settings.unsteered(), **changes)
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "unsteered", other, about=ABOUT)
    assert not (tmp_path / "unsteered").exists()
    (tmp_path / "unsteered").mkdir()
    (tmp_path / "unsteered" / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="holds results of other settings"):
        refuse_mixed_runs(tmp_path)


def test_other_methods_and_rewards_share_a_folder(tmp_path):
    for settings in (SETTINGS, SETTINGS.unsteered(), replace(SETTINGS, method="best-of-n", batch_size=64)):
        open_run(tmp_path / settings.name, manifest_of(settings), about=ABOUT)
    refuse_mixed_runs(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_files_of_something_else_are_refused(tmp_path):
    (tmp_path / "fk").mkdir()
    (tmp_path / "fk" / ".manifest.json.draft").write_text("{")
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    (tmp_path / "fk" / "manifest.json").unlink()
    (tmp_path / "fk" / "00000").mkdir()
    with pytest.raises(ValueError, match=r"holds files but no manifest\.json"):
        open_run(tmp_path / "fk", manifest_of(), about=ABOUT)


@pytest.mark.parametrize("text", ["[]", "{}", '{"settings": '])
def test_a_broken_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is (not the manifest of a run|damaged)"):
        read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_manifest(tmp_path / "new")


def test_the_model_is_described_by_its_weights_and_its_commit(tiny_sd):
    pipe = FKSteeringPipeline(tiny_sd(), reward=BRIGHTNESS)
    first = describe_model(pipe, eta=1.0)
    expected = {"pipeline": "StableDiffusionPipeline", "scheduler": "DDIMScheduler", "eta": 1.0, "commit": None}
    expected |= {"dtype": "torch.float32", "device": "cpu"}
    assert {name: first[name] for name in expected} == expected
    pipe.unet.register_to_config(_name_or_path=f"cache/models--a--b/snapshots/{'0a' * 20}/unet")
    assert describe_model(pipe, eta=1.0) == {**first, "commit": "0a" * 20}
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1e-3)
    assert describe_model(pipe)["weights"] != first["weights"]
