"""Rewards go to the hub and come back through huggingface_hub's own mixin; a folder stands in for the hub."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward import LlavaReward, llava_reward
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint

ACCESS = {"token": "t"}
FLOAT = {"torch_dtype": torch.float32, "num_crops": 1}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Repositories as folders; `token` and so on are noted."""
    root, calls = tmp_path / "hub", []

    class Api:
        def __init__(self, token=None):
            calls.append(("api", token))

        def create_repo(self, repo_id, private=None, exist_ok=False):
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **_options):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, filename, **options):
        if not (root / repo_id / filename).is_file():
            raise EntryNotFoundError(f"{repo_id} has no {filename}", response=SimpleNamespace(headers={}, request=None))
        return str(root / repo_id / filename)

    def snapshot(repo_id, **options):
        calls.append(("snapshot", options))
        return str(root / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr(llava_reward, "snapshot_download", snapshot)
    return SimpleNamespace(root=root, calls=calls)


@pytest.fixture
def reward(phi):
    return phi.load("fidelity", num_crops=1)


def test_pushed_and_loaded_it_gives_the_same_scores(reward, batch, hub, phi):
    assert reward.push_to_hub("me/reward", **ACCESS) == "https://hub/me/reward/commit/1"
    assert ("api", "t") in hub.calls
    loaded = LlavaReward.from_pretrained("me/reward", backbone=phi.backbone, revision="v1", **ACCESS, **FLOAT)
    assert isinstance(loaded, LlavaReward)
    torch.testing.assert_close(loaded(*batch), reward(*batch), rtol=0, atol=0)
    assert loaded.dimension == "fidelity"
    options = next(options for name, options in hub.calls if name == "snapshot")
    assert (options["revision"], options["token"]) == ("v1", "t")


def test_only_the_dimension_is_pushed(reward, hub):
    reward.push_to_hub("me/reward")
    files = {str(path.relative_to(hub.root / "me/reward")) for path in (hub.root / "me/reward").rglob("*.*")}
    own = {
        "reward_config.json",
        "reward.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert files == own | {"README.md", "config.json"}
    size = sum(path.stat().st_size for path in (hub.root / "me/reward").rglob("*.safetensors"))
    backbone = sum(weight.nbytes for weight in reward.model.backbone.parameters())
    dimension = sum(weight.nbytes for weight in load_own_checkpoint(hub.root / "me/reward").lora.values())
    assert dimension < size < backbone


def test_the_active_dimension_is_the_one(phi, batch, hub):
    both = phi.load(["alignment", "safety"], num_crops=1)
    both.set_dimension("safety").push_to_hub("me/safety")
    loaded = LlavaReward.from_pretrained("me/safety", backbone=phi.backbone, **FLOAT)
    torch.testing.assert_close(loaded(*batch), both(*batch), rtol=0, atol=0)
    assert not torch.equal(loaded(*batch), both.set_dimension("alignment")(*batch)), "the saboteur"


def test_a_folder_loads_by_the_mixin_and_by_name(reward, batch, tmp_path, phi, caplog):
    assert reward.save_pretrained(tmp_path / "saved") is None
    by_mixin = LlavaReward.from_pretrained(tmp_path / "saved", backbone=phi.backbone, **FLOAT)
    by_name = load_reward("llava-reward", adapter=tmp_path / "saved", backbone=phi.backbone, **FLOAT)
    torch.testing.assert_close(by_mixin(*batch), by_name(*batch), rtol=0, atol=0)
    assert by_mixin.batch_size == 8, "settings of a process are not part of a checkpoint"
    assert "not found" not in caplog.text
    reward.save_pretrained(tmp_path / "saved")  # over the older one


def test_save_pretrained_can_push(reward, tmp_path, hub):
    assert reward.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/other")
    assert (hub.root / "me/other/reward_config.json").is_file()


def test_somebody_elses_folder_is_left_alone(reward, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"is no checkpoint, but holds config\.json, model\.safetensors"):
        reward.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_card_says_what_it_is(reward, tmp_path, monkeypatch):
    reward.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert "**fidelity**, trained as bradley-terry on" in card.text
    assert card.data.library_name == "fk-reward"
    assert {"llava-reward", "reward-model"} <= set(card.data.tags)
    assert card.data.base_model == reward.config.base_model == "microsoft/Phi-3.5-vision-instruct"
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == {"model_type": "llava-reward"}
