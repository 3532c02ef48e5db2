"""Loading: names, folders of both formats, what is shared in memory, and errors that say what does not fit."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.llava_reward import loading
from fk_reward.rewards.llava_reward.backbones.base import load_backbone, spec_of
from fk_reward.rewards.llava_reward.backbones.phi3_vision import PhiVisionBackbone
from fk_reward.training import RewardArguments
from fk_reward.training.run import make_model

NAMES = [f"llava-reward-{name}" for name in ("alignment", "fidelity", "safety", "overall")]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_hub_find_their_dimension(phi, name, batch):
    files = {"backbone": phi.backbone, "adapter": phi.adapters}
    reward = load_reward(name, torch_dtype=torch.float32, **files)
    assert reward.card == reward_card(name)
    expected = phi.load(name.removeprefix("llava-reward-"))(*batch)
    assert_close(reward(*batch), expected, rtol=0, atol=0)


def test_names_of_the_hub_ask_for_the_official_files():
    from fk_reward.rewards.llava_reward.entries import ALIGNMENT_QWEN, SAFETY

    options = {name: p.default for name, p in inspect.signature(SAFETY.build).parameters.items()}
    assert options["backbone"] == "microsoft/Phi-3.5-vision-instruct"
    assert options["adapter"] == "smz8599/LLaVA-Reward"
    assert options["dimension"] == "safety"
    assert options["torch_dtype"] == torch.bfloat16
    qwen = inspect.signature(ALIGNMENT_QWEN.build).parameters
    assert qwen["backbone"].default == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_a_hub_repository_in_our_format(phi, batch, tmp_path, monkeypatch):
    phi.load("safety").save_pretrained(tmp_path / "own")
    monkeypatch.setattr("huggingface_hub.file_exists", lambda repo, name, revision: repo == "me/mine")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, revision: str(tmp_path / "own"))
    reward = load_reward("llava-reward", backbone=phi.backbone, adapter="me/mine", torch_dtype=torch.float32)
    assert reward.dimensions == ("safety",)
    assert torch.equal(reward(*batch), phi.load("safety")(*batch))


def test_a_checkpoint_of_ours_names_its_backbone(phi, tmp_path):
    reward = phi.load("safety")
    reward.save_pretrained(tmp_path / "own")
    assert loading.base_model_of(tmp_path / "own") == "microsoft/Phi-3.5-vision-instruct"


def test_a_mapping_loads_several(phi, tmp_path, batch):
    for name in ("alignment", "safety"):
        phi.load(name).save_pretrained(tmp_path / name)
    adapter = {name: tmp_path / name for name in ("safety", "alignment")}
    reward = load_reward("llava-reward", backbone=phi.backbone, adapter=adapter, torch_dtype=torch.float32)
    assert reward.dimensions == ("safety", "alignment")
    assert reward.dimension == "safety"
    assert torch.equal(reward(*batch), phi.load("safety")(*batch))


def test_a_dimension_can_be_added(phi, batch):
    reward = phi.load("alignment").add_dimension(phi.adapters, dimension="safety")
    assert reward.dimensions == ("alignment", "safety")
    assert torch.equal(reward.set_dimension("safety")(*batch), phi.load("safety")(*batch))


def test_num_crops_reaches_the_backbone(phi):
    assert phi.load(num_crops=4).model.backbone.options == {"num_crops": 4}


class TestErrors:
    def test_dimension_not_loaded(self, phi):
        with pytest.raises(ValueError, match="'beauty' is not loaded; loaded: alignment, safety"):
            phi.load(["alignment", "safety"]).set_dimension("beauty")

    def test_dimension_not_in_the_folder(self, phi):
        with pytest.raises((ValueError, FileNotFoundError), match="beauty"):
            phi.load("beauty")

    def test_dimension_missing_for_official_files(self, phi):
        with pytest.raises(ValueError, match="no reward_config.json, .*pass dimension=.alignment."):
            load_reward("llava-reward", backbone=phi.backbone, adapter=phi.adapters)

    @pytest.mark.parametrize("options", [{}, {"backbone": True}])
    def test_a_folder_that_is_an_official_checkpoint_says_what_to_pass(self, phi, options):
        folder = next(phi.adapters.rglob("reward_config.yaml")).parent
        options = {name: phi.backbone for name in options}
        with pytest.raises(ValueError, match=r"in the official format .*pass .*dimension=\"alignment\""):
            load_reward("llava-reward", adapter=folder, **options)
        reward = phi.load("safety")
        with pytest.raises(ValueError, match=r"in the official format .*pass dimension=\"alignment\""):
            reward.add_dimension(folder)
        assert "fidelity" in reward.add_dimension(folder, dimension="fidelity").dimensions

    def test_what_the_small_files_show_is_told_before_a_backbone_is_loaded(self, phi, tmp_path, monkeypatch):
        official = shutil.copytree(next(phi.adapters.rglob("reward_config.yaml")).parent, tmp_path / "official")
        phi.load("safety").save_pretrained(tmp_path / "own")
        monkeypatch.setattr("fk_reward.rewards.llava_reward.loading.load_backbone", None)
        for folder, config in ((official, "lora"), (tmp_path / "own", "adapter")):
            path = folder / config / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
            with pytest.raises(ValueError, match=f"{config}.adapter_config.json: use_dora=True"):
                load_reward("llava-reward", backbone=phi.backbone, adapter={"safety": folder}, offload=True)

    def test_backbone_missing_for_official_files(self, phi):
        with pytest.raises(ValueError, match="pass backbone="):
            load_reward("llava-reward", adapter=phi.adapters, dimension="safety")

    def test_checkpoint_of_another_dimension(self, phi, tmp_path):
        phi.load("safety").save_pretrained(tmp_path / "own")
        with pytest.raises(ValueError, match="holds dimension 'safety', not 'alignment'"):
            load_reward("llava-reward", backbone=phi.backbone, adapter={"alignment": tmp_path / "own"})

    def test_option_of_another_backbone(self, phi):
        with pytest.raises(TypeError, match="no option max_pixels; its options: num_crops"):
            phi.load(max_pixels=100)

    def test_unknown_option(self, phi):
        with pytest.raises(TypeError, match="num_crop"):
            phi.load(num_crop=4)

    @pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "a/b/c"])
    def test_paths_to_nowhere_are_not_looked_for_on_the_hub(self, phi, path):
        with pytest.raises(FileNotFoundError, match="folder of a backbone"):
            load_reward("llava-reward", backbone=path, adapter=phi.adapters, dimension="safety")
        with pytest.raises(FileNotFoundError, match="folder of a checkpoint"):
            load_reward("llava-reward", backbone=phi.backbone, adapter=path, dimension="safety")

    def test_absent_backbone(self, phi, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(OSError, match=r"config\.json"):
            load_reward("llava-reward", backbone=tmp_path / "empty", adapter=phi.adapters, dimension="safety")

    def test_backbone_of_another_kind(self, phi, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match="model_type is 'bert'.*phi3_v, qwen2_5_vl, llava_next"):
            load_reward("llava-reward", backbone=tmp_path, adapter=phi.adapters, dimension="safety")

    def test_own_checkpoint_of_another_backbone(self, tiny, phi, tmp_path):
        if tiny.model_type == "phi3_v":
            pytest.skip("the same backbone")
        tiny.load("alignment").save_pretrained(tmp_path / "own")
        with pytest.raises(ValueError, match=f"for backbone '{tiny.model_type}'.*'phi3_v'"):
            load_reward("llava-reward", backbone=phi.backbone, adapter=tmp_path / "own")

    @pytest.mark.parametrize("part", ["lora", "head", "projector"])
    def test_weights_of_another_size(self, phi, tmp_path, part):
        checkpoint = phi.load("safety").model.checkpoint("safety")
        weights = getattr(checkpoint, part)
        name = next(name for name in weights if "lora_B" in name or part != "lora")
        weights[name] = torch.cat([weights[name], weights[name]])
        checkpoint.save(tmp_path / "own")
        with pytest.raises(ValueError, match=r"shape|size mismatch"):
            load_reward("llava-reward", backbone=phi.backbone, adapter=tmp_path / "own")

    def test_lora_weights_missing(self, phi, tmp_path):
        checkpoint = phi.load("safety").model.checkpoint("safety")
        del checkpoint.lora[next(iter(checkpoint.lora))]
        with pytest.raises(ValueError, match="missing|lora"):
            checkpoint.save(tmp_path / "own")
            load_reward("llava-reward", backbone=phi.backbone, adapter=tmp_path / "own")

    def test_a_refused_adapter_leaves_nothing_behind(self, phi, batch, tmp_path):
        reward = phi.load("alignment", num_crops=5)
        expected = reward(*batch)
        checkpoint = phi.load("safety").model.checkpoint("safety")
        names = [name for name in checkpoint.lora if name.startswith("layers.0.self_attn.o_proj")]
        foreign = {name.replace("o_proj", "rotary"): checkpoint.lora[name] for name in names}
        for lora in (foreign, {name: checkpoint.lora[name] for name in names}):  # the first is refused, then a retry
            dataclasses.replace(checkpoint, lora=lora).save(tmp_path / "own")
            if lora is foreign:
                with pytest.raises(ValueError, match="rotary"):
                    reward.add_dimension(tmp_path / "own")
        reward.add_dimension(tmp_path / "own")
        assert reward.dimensions == ("alignment", "safety")
        assert torch.equal(reward(*batch), expected)


def unique_parameters(*rewards):
    """Number of weights in memory: each storage counts once."""
    tensors = {p.data_ptr(): p.numel() for reward in rewards for p in reward.model.parameters()}
    return sum(tensors.values())


def own_parameters(reward, key):
    model = reward.model
    parts = [
        *model.projectors[key].parameters(),
        *model.heads[key].parameters(),
        *model.adapters.parameters_of(key).values(),
    ]
    return sum(p.numel() for p in parts)


def test_rewards_share_the_backbone(phi):
    first, second = phi.load("alignment"), phi.load("safety")
    backbone = sum(p.numel() for name, p in first.model.backbone.named_parameters() if ".lora_" not in name)
    owned = own_parameters(first, "alignment") + own_parameters(second, "safety")
    assert first.model is second.model
    assert unique_parameters(first, second) == backbone + owned
    assert owned < backbone


def test_the_same_adapter_is_loaded_once(phi):
    first = phi.load("alignment")
    before = unique_parameters(first)
    second = phi.load("alignment")
    assert unique_parameters(first, second) == before


def test_each_reward_keeps_its_dimension(phi, batch):
    first = phi.load("alignment")
    expected = first(*batch)
    phi.load("safety")(*batch)
    assert torch.equal(first(*batch), expected)


def test_another_dtype_or_option_is_not_shared(phi):
    first = phi.load()
    assert phi.load(num_crops=4).model is not first.model
    assert phi.load(torch_dtype=torch.bfloat16).model is not first.model
    assert phi.load(offload=True).model is not first.model


def test_nothing_is_kept_alive(phi):
    from fk_reward.rewards.llava_reward.loading import _MODELS

    reward = phi.load(num_crops=2)
    gc.collect()  # what other tests left
    count = len(_MODELS)
    del reward
    gc.collect()
    assert len(_MODELS) == count - 1


def test_a_checkpoint_saved_anew_is_read_anew(phi, batch, tmp_path):
    from fk_reward.rewards import load_reward

    def load():
        options = {"backbone": phi.backbone, "adapter": tmp_path / "own", "torch_dtype": torch.float32}
        return load_reward("llava-reward", **options)

    phi.load("alignment").save_pretrained(tmp_path / "own")
    first = load()(*batch)
    checkpoint = phi.load("alignment").model.checkpoint("alignment")
    checkpoint.head["value_head.weight"] *= 2
    checkpoint.save(tmp_path / "own")
    assert torch.allclose(load()(*batch), 2 * first)


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
