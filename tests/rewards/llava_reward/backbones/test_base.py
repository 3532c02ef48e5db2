"""A backbone and an objective from outside: one line each registers them, and all that is said of the others holds."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.backbones.base import BACKBONES, backbone_spec, load_backbone, random_backbone
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.loading import base_model_of
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.llava_reward.objective import OBJECTIVES, find_objective
from fk_reward.rewards.llava_reward.official_checkpoint import load_official_checkpoint
from fk_reward.training.trainable import TrainableReward, new_dimension
from tests.tiny.training import image, make_trainer, pairs, trained_weights

ROOT = Path(__file__).parents[4]
TOPS = ("rewards", "training", "fk_reward", "pipelines", "examples")
PROMPTS = ["a red circle", "a", "two squares"]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The two lines."""
    monkeypatch.setitem(BACKBONES, "toy_vl", "tests.tiny.toy_backbone:TOY")
    monkeypatch.setitem(OBJECTIVES, "hinge", "tests.tiny.toy_objective:HINGE")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setitem(BACKBONES, "toy_vl", "tests.tiny.toy_backbone:TOY")
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("toy")
        random_backbone("toy_vl").model.save_pretrained(path)
    return path


def trainable(folder, **config):
    backbone = load_backbone(folder, torch_dtype=torch.float32, brightness=0.5)
    settings = {"dimension": "alignment", "backbone": "toy_vl", "base_model": str(folder)}
    settings |= {"backbone_options": backbone.options} | config
    network = LlavaRewardModel(backbone)
    return TrainableReward(network, new_dimension(network, LlavaRewardConfig(**settings), lora_rank=2))


def test_trained_two_steps_saved_and_loaded(folder, tmp_path):
    model = trainable(folder, objective="hinge")
    before = trained_weights(model)
    make_trainer(model, tmp_path / "run", pairs(), max_steps=2, learning_rate=1e-2, warmup_steps=0).train()
    assert all(not torch.equal(weight, before[name]) for name, weight in trained_weights(model).items())
    model.checkpoint().save(tmp_path / "saved")

    reward = load_reward("llava-reward", adapter=tmp_path / "saved", torch_dtype=torch.float32)
    images = torch.stack([image(seed) for seed in range(3)])
    raw = model.eval()(list(images), PROMPTS).squeeze(1)
    torch.testing.assert_close(reward(images, PROMPTS), 10 * raw.detach())
    assert reward.objective is find_objective("hinge")
    assert reward.model.backbone.options == {"brightness": 0.5}, "the preprocessing that it was trained with"
    assert base_model_of(tmp_path / "saved") == str(folder)
    wins = reward.preference(images[:1], images[1:2], "a star")
    scores = reward(images[:2], "a star") / 10
    torch.testing.assert_close(wins, torch.sigmoid((scores[:1] - scores[1:]) / reward.config.temperature))


def test_the_trainer_asks_the_objective(folder, tmp_path):
    trainer = make_trainer(trainable(folder, objective="hinge"), tmp_path, pairs(4), max_steps=1)
    measures = trainer.evaluate(pairs(4))
    items = torch.as_tensor(trainer.predict(pairs(4)).predictions)
    expected = find_objective("hinge").loss(items, None, temperature=0.1)
    assert measures["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    other = find_objective("bradley-terry").loss(items, None, temperature=0.1)
    assert measures["eval_loss"] != pytest.approx(other.item(), rel=1e-3), "the saboteur: another objective's loss"


@pytest.mark.parametrize("objective", ["bradley-terry", "binary", "general-preference"])
def test_the_objectives_that_are_there_read_the_new_backbone(folder, objective):
    model = trainable(folder, objective=objective, value_head_dim=find_objective(objective).default_outputs)
    assert model([image(0), image(1)], PROMPTS[:2]).shape == (2, model.objective.default_outputs)


def test_options_of_the_new_backbone_are_its_own(folder, tmp_path):
    trainable(folder).network.backbone.model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"ToyBackbone has no option num_crops; its options: brightness"):
        load_backbone(folder, num_crops=4)
    assert random_backbone("toy_vl", num_crops=4, brightness=2.0).options == {"brightness": 2.0}
    reward = trainable(folder)
    reward.network.train_dimension(reward.key)
    reward.checkpoint().save(tmp_path / "saved")
    loaded = load_reward("llava-reward", adapter=tmp_path / "saved", backbone_options={"brightness": 0.25})
    assert loaded.model.backbone.options == {"brightness": 0.25}
    with pytest.raises(TypeError, match="ToyBackbone has no option contrast"):
        load_reward("llava-reward", adapter=tmp_path / "saved", backbone_options={"contrast": 1})


def test_what_the_new_backbone_lacks_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="No official checkpoints are known for 'toy_vl', only for phi3_v"):
        load_official_checkpoint(tmp_path, backbone="toy_vl", dimension="safety", base_model="x")
    assert backbone_spec("toy_vl").official is None


def test_unknown_names_list_the_new_ones():
    with pytest.raises(ValueError, match="phi3_v, qwen2_5_vl, llava_next, toy_vl"):
        backbone_spec("toy")
    with pytest.raises(ValueError, match="bradley-terry, binary, general-preference, hinge, got 'logistic'"):
        find_objective("logistic")


def compared_strings(source):
    """Strings that a module compares, looks up in an `in`, or matches."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.match_case):
            yield from (
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


def shipped_files():
    return [
        path
        for top in ("rewards", "training", "fk_reward", "pipelines", "examples")
        for path in (ROOT / top).rglob("*.py")
    ]


def test_no_file_compares_their_names():
    names = {*BACKBONES, *OBJECTIVES}
    found = {
        str(path.relative_to(ROOT)): name
        for path in shipped_files()
        for name in names & set(compared_strings(path.read_text(encoding="utf-8")))
    }
    assert found == {}, "ask the BackboneSpec or the Objective instead"


def test_a_comparison_is_found():
    assert "binary" in set(compared_strings('if config.objective == "binary":\n    pass'))
    assert "phi3_v" in set(compared_strings('x = 1 if name not in ("phi3_v", "other") else 2'))
