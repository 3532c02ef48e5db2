"""Names of models in the package stand wherever a backbone or an adapter is named; a checkpoint says how it reads."""

from __future__ import annotations

import pytest
import torch

from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.backbones.base import load_backbone, spec_of
from fk_reward.rewards.llava_reward.backbones.phi3_vision import PhiVisionBackbone
from fk_reward.training import RewardArguments
from fk_reward.training.run import make_model


@pytest.fixture
def embedded(phi, tmp_path, monkeypatch):
    """A backbone and an adapter of the package, the latter trained with 4 crops."""
    reward = phi.load("alignment", num_crops=4)
    checkpoint = reward.model.checkpoint("alignment")
    object.__setattr__(checkpoint.config, "base_model", "shapes-mllm")
    checkpoint.config.backbone_options["num_crops"] = 4
    checkpoint.save(tmp_path / "adapter")
    monkeypatch.setitem(EMBEDDED_MODELS, "shapes-mllm", phi.backbone)
    monkeypatch.setitem(EMBEDDED_MODELS, "shapes-llava-reward-alignment", tmp_path / "adapter")
    return reward


def load(**options):
    return load_reward("llava-reward", **{"torch_dtype": torch.float32} | options)


def test_an_adapter_by_name_finds_its_backbone_and_its_crops(embedded, batch):
    reward = load(adapter="shapes-llava-reward-alignment")
    assert reward.model.backbone.options == {"num_crops": 4}
    assert torch.equal(reward(*batch), embedded(*batch))
    assert load(adapter="shapes-llava-reward-alignment", num_crops=2).model.backbone.options == {"num_crops": 2}


def test_a_name_and_its_folder_are_one_thing_in_memory(embedded, phi):
    by_name = load(adapter="shapes-llava-reward-alignment")
    adapter = EMBEDDED_MODELS["shapes-llava-reward-alignment"]
    by_folder = load(adapter=adapter, backbone=phi.backbone, num_crops=4)
    assert by_name.model is by_folder.model
    assert len(by_name.model.configs) == len({*by_name.model.sources.values()})
    assert by_name.model.sources.keys() == by_folder.model.sources.keys()


def test_a_setting_that_is_the_default_is_shared(phi):
    assert phi.load().model is phi.load(num_crops=16).model


def test_a_backbone_by_name(embedded):
    assert spec_of("shapes-mllm").backbone is PhiVisionBackbone
    assert load_backbone("shapes-mllm", torch_dtype=torch.float32, num_crops=1).options == {"num_crops": 1}


def test_training_on_a_backbone_by_name_keeps_the_name(embedded):
    settings = {"dimension": "safety", "train_data": "unused.json", "backbone_dtype": "float32", "num_crops": 1}
    model = make_model(RewardArguments(backbone="shapes-mllm", lora_rank=2, **settings), seed=0)
    assert model.reward_config.base_model == "shapes-mllm"


@pytest.mark.parametrize("options", [{"adapter": "shapes-llava-reward-alignment"}, {"backbone": "shapes-mllm"}])
def test_absent_files_are_told(phi, monkeypatch, tmp_path, options):
    for name in ("shapes-mllm", "shapes-llava-reward-alignment"):
        monkeypatch.setitem(EMBEDDED_MODELS, name, tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="reinstall fk-reward"):
        load(**{"adapter": phi.adapters, "backbone": phi.backbone, "dimension": "alignment"} | options)
