"""Adapters for noise bands on one backbone: switched by the level, calibrated, and gone for finished images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from fk_reward.benchmarks.store import weights_digest
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint, load_own_checkpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.noise_bands import prompt_at_level
from tests.rewards.llava_reward.conftest import coarse_image

IMAGES = torch.stack([coarse_image(64, 64, seed) for seed in range(3)])
PROMPTS = ["a red circle", "two squares", "a star"]


def write(phi, folder, *, of="fidelity", name="alignment@0.5", band=(0.4, 0.6), **settings):
    """The weights of another dimension as an adapter for a band, so that what it gives is known."""
    source = phi.load(of)
    checkpoint = source.model.checkpoint(source._keys[of])
    config = dataclasses.replace(checkpoint.config, dimension=name, noise_band=band, **settings)
    return RewardCheckpoint(
        config, checkpoint.lora_config, checkpoint.lora, checkpoint.projector, checkpoint.head
    ).save(folder)


@pytest.fixture(scope="module")
def folder(phi, tmp_path_factory):
    root = tmp_path_factory.mktemp("bands")
    write(phi, root / "middle", calibration={"scale": 2.0, "offset": 1.0})
    write(phi, root / "noisy", of="safety", name="alignment@0.8", band=(0.6, 1.0))
    return root


def test_a_band_scores_as_its_adapter_alone_and_calibrated(phi, folder):
    reward = phi.load(bands=folder)
    assert_close(
        reward.at_noise(0.5)(IMAGES, PROMPTS), 2 * phi.load("fidelity")(IMAGES, PROMPTS) + 1, rtol=0, atol=1e-6
    )
    assert_close(reward.at_noise(0.6)(IMAGES, PROMPTS), phi.load("safety")(IMAGES, PROMPTS), rtol=0, atol=1e-6)
    assert reward.at_noise(0.5).judges == ("llava-reward-alignment@0.5",)
    assert reward.at_noise(0.5).model is reward.model


def test_finished_images_are_judged_as_before_bit_for_bit(phi, folder):
    expected = phi.load()(IMAGES, PROMPTS)
    reward = phi.load(bands=folder)
    assert torch.equal(reward(IMAGES, PROMPTS), expected)
    assert reward.at_noise(0.0) is reward and reward.at_noise(0.3) is reward
    reward.at_noise(0.7)(IMAGES, PROMPTS)
    assert torch.equal(reward(IMAGES, PROMPTS), expected), "the adapter is switched back"
    assert reward.judges == ("llava-reward-alignment",) and reward.dimensions == ("alignment",)


def test_one_pass_scores_a_band_beside_another_dimension(phi, folder):
    banded, fidelity = phi.load(bands=folder), phi.load("fidelity")
    at_noise = banded.at_noise(0.7)
    assert at_noise.shared_pass == fidelity.shared_pass
    together = at_noise.score_together([fidelity], IMAGES, PROMPTS)
    assert_close(together[0], phi.load("safety")(IMAGES, PROMPTS), rtol=0, atol=1e-5)
    assert_close(together[1], fidelity(IMAGES, PROMPTS), rtol=0, atol=1e-5)
    composed = (banded + 2 * fidelity).at_noise(0.7)
    assert_close(composed(IMAGES, PROMPTS), together[0] + 2 * together[1], rtol=0, atol=1e-5)
    assert composed.judges == ("llava-reward-alignment@0.8", "llava-reward-fidelity")


def test_a_level_in_the_prompt_is_written_there_and_shares_no_pass(phi, tmp_path):
    write(phi, tmp_path / "all", name="alignment@all", band=(0.0, 1.0), level_in_prompt=True)
    reward = phi.load(bands=tmp_path / "all")
    prompts = [prompt_at_level(prompt, 0.42) for prompt in PROMPTS]
    assert_close(reward.at_noise(0.42)(IMAGES, PROMPTS), phi.load("fidelity")(IMAGES, prompts), rtol=0, atol=1e-6)
    assert reward.at_noise(0.42).shared_pass != phi.load("fidelity").shared_pass
    both = (reward + phi.load("fidelity")).at_noise(0.42)
    expected = phi.load("fidelity")(IMAGES, prompts) + phi.load("fidelity")(IMAGES, PROMPTS)
    assert_close(both(IMAGES, PROMPTS), expected, rtol=0, atol=1e-5)


def test_offload_and_fewer_crops_go_along(phi, folder, tmp_path):
    reward = phi.load(bands=folder, offload=True)
    assert_close(reward.at_noise(0.7)(IMAGES, PROMPTS), phi.load("safety")(IMAGES, PROMPTS), rtol=0, atol=1e-6)
    write(phi, tmp_path / "coarse", backbone_options={"num_crops": 1})
    large = torch.stack([coarse_image(120, 120, seed) for seed in range(3)])
    coarse = phi.load(num_crops=4, bands=tmp_path / "coarse").at_noise(0.5)
    assert_close(coarse(large, PROMPTS), phi.load("fidelity", num_crops=1)(large, PROMPTS), rtol=0, atol=1e-6)
    assert coarse.for_previews()._prepare_options == {"num_crops": 1}


def test_uncalibrated_bands_are_named(phi, folder):
    reward = phi.load(bands=folder)
    assert reward.uncalibrated == ("alignment@0.8",)
    assert (reward + phi.load("fidelity")).uncalibrated == ("alignment@0.8",)
    assert phi.load().uncalibrated == ()


def test_the_digest_of_weights_holds_the_bands(phi, folder, tmp_path):
    write(phi, tmp_path / "other", of="safety", name="alignment@0.8", band=(0.6, 0.9))
    rewards = [phi.load(), phi.load(bands=folder), phi.load(bands=[folder / "middle", tmp_path / "other"])]
    assert len({weights_digest([reward]) for reward in rewards}) == 3


def test_the_configuration_is_kept(phi, folder):
    config = load_own_checkpoint(folder / "middle").config
    assert config.band.name == "0.5" and config.noise_band == (0.4, 0.6) and config.judged == "alignment"
    plain = LlavaRewardConfig(dimension="alignment", backbone="phi3_v", base_model="x")
    assert "noise_band" not in plain.to_json(), "files of adapters for finished images are as before"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension": "alignment@0.5"}, "noise_band"),
        ({"noise_band": (0.4, 0.6)}, "noise_band"),
        ({"dimension": "a@0.5", "noise_band": (0.6, 0.4)}, "low < high"),
        ({"dimension": "a@0.5", "noise_band": (0.6,)}, "low, high"),
        ({"dimension": "a@0.5", "noise_band": (0.4, 0.6), "calibration": {"scale": 1.0}}, "scale and offset"),
        ({"dimension": "a@0.5", "noise_band": (0.4, 0.6), "calibration": {"scale": -1.0, "offset": 0}}, "scale > 0"),
        ({"calibration": {"scale": 1.0, "offset": 0.0}}, "is none"),
        (
            {
                "dimension": "a@0.5",
                "noise_band": (0.4, 0.6),
                "objective": "general-preference",
                "value_head_dim": 2,
            },
            "by itself",
        ),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LlavaRewardConfig(**{"dimension": "alignment", "backbone": "phi3_v", "base_model": "x"} | settings)


def test_wrong_bands_are_refused(phi, folder, tmp_path):
    with pytest.raises(ValueError, match="for finished images"):
        phi.load(bands=phi.load().save_pretrained(tmp_path / "plain") or tmp_path / "plain")
    write(phi, tmp_path / "overlapping", name="alignment@0.55", band=(0.5, 0.7))
    with pytest.raises(ValueError, match="overlap"):
        phi.load(bands=[folder, tmp_path / "overlapping"])
    with pytest.raises(ValueError, match="not loaded"):
        phi.load("fidelity", bands=folder)
    with pytest.raises(ValueError, match="merge_lora"):
        phi.load(bands=folder, merge_lora=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no noise band"):
        phi.load(bands=tmp_path / "empty")


def test_embedded_rewards_take_bands_by_folder(tmp_path):
    plain = load_reward("shapes-llava-reward-alignment")
    checkpoint = plain.model.checkpoint(plain._keys["alignment"])
    calibration = {"scale": 0.5, "offset": 0.25}
    config = dataclasses.replace(
        checkpoint.config, dimension="alignment@0.6", noise_band=(0.5, 0.7), calibration=calibration
    )
    dataclasses.replace(checkpoint, config=config).save(tmp_path / "band")
    reward = load_reward("shapes-llava-reward-alignment", bands=tmp_path)
    prompts = ["a photo of a star"] * 3
    assert_close(reward.at_noise(0.6)(IMAGES, prompts), 0.5 * plain(IMAGES, prompts) + 0.25)
    assert reward.at_noise(0.6).judges == ("shapes-llava-reward-alignment@0.6",)
