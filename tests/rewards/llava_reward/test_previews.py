"""Fewer crops while a sampler steers, all of them for the finished images."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward import FKSteeringPipeline
from fk_reward.rewards import CallableReward, load_reward
from fk_reward.rewards.llava_reward.backbones.base import random_backbone
from tests.rewards.llava_reward.conftest import coarse_image
from tests.tiny.latent_diffusion import make_sd

IMAGES = torch.stack([coarse_image(120, 120, seed) for seed in range(3)])
PROMPTS = ["a red circle", "two squares", "a star"]


def test_previews_are_read_with_fewer_crops_and_finished_images_are_not(phi):
    reward = phi.load(num_crops=4, preview_num_crops=1)
    assert_close(reward(IMAGES, PROMPTS), phi.load(num_crops=4)(IMAGES, PROMPTS), rtol=0, atol=0)
    previews = reward.for_previews()(IMAGES, PROMPTS)
    assert_close(previews, phi.load(num_crops=1)(IMAGES, PROMPTS), rtol=0, atol=0)
    assert (previews - reward(IMAGES, PROMPTS)).abs().min() > 1e-4, "the crops count"


def test_weights_are_shared_and_the_card_is_the_same(phi):
    reward = phi.load(num_crops=4, preview_num_crops=1)
    preview = reward.for_previews()
    assert preview.model is reward.model
    assert preview.card == reward.card
    assert reward.model.backbone.options == {"num_crops": 4}
    assert preview.shared_pass != reward.shared_pass


def test_without_the_option_it_is_the_reward_itself(phi):
    reward = phi.load(num_crops=4)
    assert reward.for_previews() is reward
    plain = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "grey")
    assert plain.for_previews() is plain


def test_compositions_pass_it_on(phi):
    grey = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "grey")
    assert (grey + 1).for_previews().parts == {"grey": grey}
    reward = phi.load(num_crops=4, preview_num_crops=1)
    both = 2 * reward + grey
    expected = 2 * reward.for_previews()(IMAGES, PROMPTS) + grey(IMAGES, PROMPTS)
    assert_close(both.for_previews()(IMAGES, PROMPTS), expected, rtol=0, atol=1e-5)


def test_dimensions_of_one_pass_read_the_same_crops(phi):
    rewards = [phi.load(name, num_crops=4, preview_num_crops=1) for name in ("alignment", "safety")]
    expected = [reward.for_previews()(IMAGES, PROMPTS) for reward in rewards]
    first, second = (reward.for_previews() for reward in rewards)
    for got, alone in zip(first.score_together([second], IMAGES, PROMPTS), expected, strict=True):
        assert_close(got, alone, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one model"):
        first.score_together([rewards[1]], IMAGES, PROMPTS)


def test_a_sampler_asks_the_preview_on_the_way_and_the_reward_at_the_end(phi, monkeypatch):
    reward = phi.load(num_crops=4, preview_num_crops=1)
    crops = []
    prepare = type(reward.model.backbone).prepare

    def spy(backbone, images, prompts):
        crops.append(backbone.options["num_crops"])
        return prepare(backbone, images, prompts)

    monkeypatch.setattr(type(reward.model.backbone), "prepare", spy)
    pipe = FKSteeringPipeline(make_sd(), reward=reward)
    pipe.set_progress_bar_config(disable=True)
    output = pipe("a star", num_particles=2, num_inference_steps=4, output_type="pt", search="fk")
    assert crops[-1] == 4
    assert set(crops[:-1]) == {1}
    expected = reward(output.images, ["a star"] * len(output.images))
    assert_close(output.rewards.flatten()[: len(expected)], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("model_type", "message"), [("qwen2_5_vl", "cannot prepare"), ("phi3_v", "no option")])
def test_options_of_other_backbones_are_refused(model_type, message):
    with pytest.raises(TypeError, match=message):
        random_backbone(model_type).with_options(max_patches=4)


def test_no_crops_are_refused_at_once():
    with pytest.raises(ValueError, match="num_crops"):
        load_reward("shapes-llava-reward-alignment", preview_num_crops=0)
