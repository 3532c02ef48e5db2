"""`fk-reward convert`."""

from __future__ import annotations

import pytest
import torch

from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.rewards.llava_reward.official_checkpoint import load_official_checkpoint
from tests.tiny.llava_next import write_llava_next
from tests.tiny.official_reward import write_official_reward
from tests.tiny.phi3_vision import write_phi3_vision

PHI = ("--backbone", "phi3_v", "--dimension", "alignment")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    backbone = write_phi3_vision(tmp_path_factory.mktemp("phi"))
    return write_official_reward(tmp_path_factory.mktemp("official"), backbone=backbone, model_type="phi3_v", rank=3)


def test_it_writes_what_it_read_and_says_what_it_found(run, official, tmp_path):
    result = run("convert", official, tmp_path / "own", *PHI)
    assert result.exit_code == 0, result.output
    own = load_own_checkpoint(tmp_path / "own")
    read = load_official_checkpoint(
        official, backbone="phi3_v", dimension="alignment", base_model="microsoft/Phi-3.5-vision-instruct"
    )
    assert own.config == read.config
    for part in ("lora", "projector", "head"):
        assert getattr(own, part).keys() == getattr(read, part).keys()
        assert all(torch.equal(tensor, getattr(read, part)[key]) for key, tensor in getattr(own, part).items())
    width = own.head["value_head.weight"].shape[1]
    told = " ".join(result.stdout.split())
    for text in (f"{len(own.lora_modules)} modules, rank 3", f"1 x {width}", "attends to visual", "4 tensors"):
        assert text in told
    assert "alignment (bradley-terry)" in told and "phi3_v (microsoft/Phi-3.5-vision-instruct)" in told
    assert str(tmp_path / "own") in told and str(official) in told


def test_what_the_folder_does_not_say(run, tmp_path, tmp_path_factory):
    backbone = write_llava_next(tmp_path_factory.mktemp("llava"))
    official = write_official_reward(tmp_path / "official", backbone=backbone, model_type="llava_next")
    options = ("--backbone", "llava_next", "--dimension", "my-taste", "--base-model", backbone, "--objective", "binary")
    result = run("convert", official, tmp_path / "own", *options)
    assert result.exit_code == 0, result.output
    config = load_own_checkpoint(tmp_path / "own").config
    assert (config.dimension, config.base_model, config.objective) == ("my-taste", str(backbone), "binary")
    assert "SkipCA │ no" in " ".join(result.stdout.split())


def test_a_full_folder_is_refused_unless_told_otherwise(run, refused, official, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in refused("convert", official, tmp_path, *PHI)
    assert not (tmp_path / "reward_config.json").exists()
    assert run("convert", official, tmp_path, *PHI, "--overwrite").exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load_own_checkpoint(tmp_path).config.dimension == "alignment"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backbone", "qwen2_5_vl", "--dimension", "alignment"), "a checkpoint for phi3_v, not qwen2_5_vl"),
        (("--backbone", "phi4", "--dimension", "alignment"), "backbone 'phi4'"),
        (("--backbone", "phi3_v", "--dimension", "a.b"), "dimension may have letters"),
        ((*PHI, "--objective", "general-preference"), "must be bradley-terry or binary"),
        (("--backbone", "phi3_v"), "Missing --dimension"),
    ],
)
def test_mistakes_are_told(refused, official, tmp_path, options, message):
    assert message in refused("convert", official, tmp_path / "own", *options)
    assert not (tmp_path / "own").exists()


def test_an_absent_folder(refused, tmp_path):
    assert "lacks reward_config.yaml" in refused("convert", tmp_path / "nowhere", tmp_path / "own", *PHI)
