"""Loading: the names of the hub, folders of both formats, and errors that say what does not fit."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.llava_reward import loading

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
        with pytest.raises(ValueError, match="'beauty' is not loaded; there are: alignment, safety"):
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
        with pytest.raises(ValueError, match="holds dimension 'safety', but 'alignment'"):
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
