"""LLaVA-Reward steers a pipeline: dimensions, general preferences, offload, micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward import FKSteeringPipeline
from tests.tiny.latent_diffusion import make_sd

OPTIONS = {"num_particles": 3, "num_inference_steps": 4, "num_images_per_prompt": 3, "output_type": "pt"}


def run(reward, seed=0, **options):
    pipe = FKSteeringPipeline(make_sd(), reward=reward)
    return pipe(["a star", "two circles"], generator=torch.Generator().manual_seed(seed), **(OPTIONS | options))


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_rewards_are_those_of_the_returned_images(phi, dimension):
    reward = phi.load(dimension, num_crops=1)
    output = run(reward)
    prompts = ["a star"] * 3 + ["two circles"] * 3
    assert_close(output.rewards.flatten(), reward(output.images, prompts), rtol=1e-3, atol=1e-3)
    assert output.trace.reward_name == f"llava-reward-{dimension}"


def test_a_general_preference_sums_to_zero_over_the_particles(phi):
    for step in run(phi.load("overall", num_crops=1)).trace.steps:
        assert_close(step.rewards.sum(dim=1), torch.zeros(2), rtol=0, atol=1e-3)


def test_offload_and_micro_batches_change_nothing(phi):
    expected = run(phi.load(num_crops=1)).rewards
    assert_close(run(phi.load(num_crops=1, offload=True, batch_size=2)).rewards, expected, rtol=1e-4, atol=1e-4)


def test_offload_moves_the_weights_to_score_and_back(phi, batch, monkeypatch):
    reward = phi.load(offload=True).to("cpu")
    places = []
    move = reward.model.to
    monkeypatch.setattr(reward.model, "to", lambda device: places.append(str(device)) or move(device))
    reward(*batch)
    assert places == ["cpu", "cpu"]
    places.clear()
    monkeypatch.setattr(reward.model.backbone, "prepare", lambda *inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reward(*batch)
    assert places == ["cpu", "cpu"]


def test_offload_names_the_device_to_score_on(phi):
    reward = phi.load(offload=True).to("meta")
    assert reward.device == torch.device("meta")
    assert reward.model.backbone.device == torch.device("cpu")


def test_offload_refuses_a_gradient(phi, batch):
    images, prompts = batch
    with pytest.raises(ValueError, match="offload=True"):
        phi.load(offload=True)(images.clone().requires_grad_(), prompts)


def test_a_general_preference_compares_all_particles_however_few_are_read_at_once(phi):
    reward, expected = phi.load("overall", num_crops=1), run(phi.load("overall", num_crops=1))
    output = run(reward, reward_batch_size=2)
    assert_close(output.rewards, expected.rewards, rtol=1e-4, atol=1e-4)
    assert reward.batch_size == 8
    images, prompts = output.images, ["a star"] * 3 + ["two circles"] * 3
    apart = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(6)])
    assert not torch.allclose(apart, expected.rewards.flatten(), atol=1e-2)  # saboteur: calls of one image each
