"""Rewards and previews that write to what they get: a steered call returns what it returns without that."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from fk_reward import FKSteeringConfig, ParticleFilter, Reward, RewardCard, steer
from fk_reward.rewards import CallableReward
from tests import tiny
from tests.pipelines.calls import generator, steered

CALL = {"num_particles": 4, "num_inference_steps": 4, "num_images_per_prompt": 4, "ess_threshold": 1.0}


def plain(images, prompts):
    return (images - 0.5)[:, 0].mean((1, 2))


def writing(images, prompts):
    prompts.clear()
    return images.sub_(0.5)[:, 0].mean((1, 2))


class OwnCall(Reward):
    """Does without the base class's call."""

    card = RewardCard(name="own", summary="own call")

    def score(self, images, prompts):
        raise NotImplementedError

    def __call__(self, images, prompts):
        return writing(images, list(prompts))


REWARDS = {
    "function": lambda: writing,
    "own call": OwnCall,
    "composition": lambda: CallableReward(writing, "a") + 0 * CallableReward(writing, "b"),
}


@pytest.fixture(scope="module", params=["epsilon", "sample"])
def pipe(request):
    return steered(tiny.make_sd(prediction_type=request.param))


def same_images(pipe, first, second, **options):
    out = []
    for reward, preview in (first, second):
        pipe.reward, pipe.preview = reward, preview
        out.append(pipe("a star", generator=generator(), **CALL, **options))
    torch.testing.assert_close(out[0].images, out[1].images, rtol=0, atol=0)
    torch.testing.assert_close(out[0].rewards, out[1].rewards)
    for step, other in zip(out[0].trace.steps, out[1].trace.steps, strict=True):
        assert torch.equal(step.thumbnails, other.thumbnails)
    assert any(step.ancestors is not None for step in out[0].trace.steps)


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_a_writing_reward(pipe, make):
    same_images(pipe, (plain, None), (make(), None), output_type="pt", reward_scale=30.0)


def test_a_writing_reward_on_a_device_of_its_own(pipe):
    pipe.reward_device = "cpu"
    same_images(pipe, (plain, None), (writing, None), output_type="pt", reward_scale=30.0, decode_batch_size=2)
    pipe.reward_device = None


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_a_writing_preview(pipe, output_type):
    """Where the model predicts the sample, what is shown to the preview may be the model's output itself."""

    def pixels(latents):
        return (latents[:, :3] / 4 + 0.5).clamp(0, 1)

    def writing_pixels(latents):
        return latents.div_(4).add_(0.5).clamp_(0, 1)[:, :3]

    same_images(pipe, (plain, pixels), (plain, writing_pixels), output_type=output_type, reward_scale=30.0)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_writing_score_of_steer(prediction_type):
    def end(score):
        scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction_type)
        scheduler.set_timesteps(5)
        particle_filter = ParticleFilter(FKSteeringConfig(num_particles=4, num_resamples=2, ess_threshold=1.0))
        sample = torch.randn(4, 1, 2, 2, generator=generator(3))
        with steer(scheduler, particle_filter, score):
            for t in scheduler.timesteps:
                sample = scheduler.step(0.5 * sample, t, sample, eta=1.0, generator=generator(int(t))).prev_sample
        return sample

    def mean(x0):
        return x0.mean((1, 2, 3))

    def writing_mean(x0):
        scores = mean(x0)
        x0.zero_()
        return scores

    assert torch.equal(end(mean), end(writing_mean))
