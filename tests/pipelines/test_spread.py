"""Particles of one prompt in two processes give what one process gives."""

from __future__ import annotations

import pytest
import torch

from fk_reward.particle_exchange import ParticleExchange
from fk_reward.pipelines import particle_share
from fk_reward.rewards import CallableReward
from tests.accelerate_launch import launch
from tests.pipelines.spread_call import call, generators, main


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    launch("tests.pipelines.spread_call", tmp_path, timeout=500)
    main(str(tmp_path))
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    crossed = any(a is not None and ((a // 2) != torch.arange(4) // 2).any() for a in one["ancestors"])
    assert crossed, "no particle moved from one process to the other"
    for two in (first, second):
        torch.testing.assert_close(two["images"], one["images"], rtol=0, atol=1e-5)
        torch.testing.assert_close(two["rewards"], one["rewards"], rtol=0, atol=1e-5)
        assert two["counts"] == one["counts"]
        for name in ("ancestors", "thumbnails"):
            for mine, other in zip(two[name], one[name], strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=1)


@pytest.fixture
def two_processes(monkeypatch):
    class State:
        num_processes, process_index = 2, 1

    monkeypatch.setattr("accelerate.PartialState", State)


def test_a_single_generator_is_refused(two_processes):
    for wrong in (torch.Generator(), None, generators()[:4]):
        with pytest.raises(ValueError, match="a list of 8 generators"):
            call(generator=wrong)


def test_an_uneven_share_is_refused(two_processes):
    with pytest.raises(ValueError, match="3 particles cannot be shared by 2 processes"):
        call(num_particles=3)


def test_a_funnel_is_refused(two_processes):
    with pytest.raises(ValueError, match="final_particles cannot be had"):
        call(final_particles=2)


def test_a_reward_that_compares_is_refused(two_processes, monkeypatch):
    monkeypatch.setattr(CallableReward, "compares_images", True)
    reward = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "compares")
    with pytest.raises(ValueError, match="compares the images of a prompt"):
        particle_share.find_exchange(_Config, 1, spread=True, reward=reward)


class _Config:
    num_particles = 4


def test_latents_are_shared_out():
    exchange = ParticleExchange(num_groups=1, num_particles=4, num_processes=2, process=1)
    own = particle_share.own_arguments({"generator": [0, 1, 2, 3], "latents": torch.arange(4)}, exchange)
    assert own["generator"] == [2, 3]
    assert own["latents"].tolist() == [2, 3]
