"""The stock pipeline is the oracle: what steering must not change, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, LCMScheduler

from fk_reward.pipelines.resampling_generators import resampling_generators
from tests import tiny
from tests.pipelines.calls import STEPS, BrightnessReward, constant, generator, steered

PROMPT = "a red circle"
SCHEDULERS = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False),
    "euler-ancestral": EulerAncestralDiscreteScheduler.from_config,
    "sde-dpmsolver++": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++"),
    "lcm": LCMScheduler.from_config,
}
MAKERS = {"sd": tiny.make_sd, "sdxl": tiny.make_sdxl}


def stock(pipe, num_images, seed=0, **kwargs):
    eta = {"eta": 1.0} if isinstance(pipe.scheduler, DDIMScheduler) else {}
    return pipe(
        PROMPT,
        num_inference_steps=STEPS,
        num_images_per_prompt=num_images,
        generator=generator(seed),
        output_type="np",
        **eta,
        **kwargs,
    ).images


def make(family, scheduler):
    pipe = MAKERS[family]()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS[scheduler](pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", MAKERS)
class TestEqualToStock:
    def test_one_particle(self, family, scheduler):
        pipe = make(family, scheduler)
        out = steered(pipe)(PROMPT, num_particles=1, num_inference_steps=STEPS, generator=generator(), output_type="np")
        assert np.array_equal(out.images, stock(pipe, 1))

    def test_reward_scale_zero(self, family, scheduler):
        pipe = make(family, scheduler)
        out = steered(pipe)(
            PROMPT,
            num_particles=4,
            reward_scale=0,
            num_images_per_prompt=4,
            num_inference_steps=STEPS,
            generator=generator(),
            output_type="np",
        )
        order = out.trace.selected[0]
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        assert np.array_equal(out.images, stock(pipe, 4)[order.numpy()])

    def test_constant_reward_runs_every_scoring_step_and_changes_nothing(self, family, scheduler):
        pipe = make(family, scheduler)
        out = steered(pipe, constant)(
            PROMPT,
            num_particles=4,
            ess_threshold=1.0,
            resampling="multinomial",
            num_images_per_prompt=4,
            num_inference_steps=STEPS,
            generator=generator(),
            output_type="np",
        )
        assert len(out.trace.steps) > 2
        assert np.array_equal(out.images, stock(pipe, 4))

    def test_steering_does_change_the_images(self, family, scheduler):
        """The saboteur of the tests above: they could not pass if steering never did anything."""
        pipe = make(family, scheduler)
        out = steered(pipe)(
            PROMPT,
            num_particles=4,
            reward_scale=1e4,
            ess_threshold=1.0,
            num_images_per_prompt=4,
            num_inference_steps=STEPS,
            generator=generator(),
            output_type="np",
        )
        assert not np.array_equal(out.images, stock(pipe, 4)[out.trace.selected[0].numpy()])


@pytest.mark.parametrize("family", MAKERS)
def test_the_same_generator_gives_the_same_result(family):
    wrapped = steered(make(family, "ddim"))
    first, second, other = (
        wrapped(PROMPT, num_inference_steps=STEPS, reward_scale=1e3, generator=generator(seed), output_type="pt")
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.rewards, second.rewards)
    assert not torch.equal(first.images, other.images)


def test_without_a_generator_the_global_seed_decides():
    wrapped = steered(make("sd", "ddim"))
    images = []
    for _ in range(2):
        torch.manual_seed(7)
        images.append(wrapped(PROMPT, num_inference_steps=STEPS, reward_scale=1e3, output_type="pt").images)
    assert torch.equal(*images)


def test_without_a_generator_the_one_of_the_device_decides(monkeypatch):
    """On CUDA the noise of a call does not move the state of the CPU's generator."""
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor(states.pop(0), dtype=torch.uint8))
    states = [[1, 2], [1, 2], [3, 4]]
    first, same, other = (resampling_generators(None, 1, device="cuda")[0].initial_seed() for _ in range(3))
    assert first == same != other


def test_pil_output_equals_the_stock_pipelines():
    pipe = make("sd", "ddim")
    out = steered(pipe)(PROMPT, num_particles=1, num_inference_steps=STEPS, generator=generator())
    image = pipe(PROMPT, num_inference_steps=STEPS, eta=1.0, generator=generator()).images[0]
    assert out.images[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("family", MAKERS)
def test_prompts_never_exchange_particles(family):
    """With one generator for each image, a prompt in a batch gives what it gives alone."""
    wrapped = steered(make(family, "ddim"))
    prompts, num_particles = ["a red circle", "a blue square"], 4
    arguments = {
        "num_particles": num_particles,
        "num_images_per_prompt": num_particles,
        "num_inference_steps": STEPS,
        "reward_scale": 1e3,
        "output_type": "pt",
    }
    seeds = [[generator(100 * p + k) for k in range(num_particles)] for p in range(2)]
    both = wrapped(prompts, generator=seeds[0] + seeds[1], **arguments)
    for index, prompt in enumerate(prompts):
        alone = wrapped(prompt, generator=[generator(100 * index + k) for k in range(num_particles)], **arguments)
        half = both.images[index * num_particles : (index + 1) * num_particles]
        torch.testing.assert_close(half, alone.images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.rewards[index], alone.rewards[0], rtol=1e-4, atol=1e-4)


def test_the_scheduler_and_the_pipeline_are_as_before():
    pipe = make("sd", "sde-dpmsolver++")
    stock(pipe, 1)
    scheduler, pipeline = set(vars(pipe.scheduler)), set(vars(pipe))
    config = dict(pipe.scheduler.config)
    steered(pipe)(PROMPT, num_inference_steps=STEPS, generator=generator())
    assert set(vars(pipe.scheduler)) == scheduler
    assert set(vars(pipe)) == pipeline
    assert dict(pipe.scheduler.config) == config
    assert not pipe.unet._forward_hooks


def test_everything_is_put_back_after_an_error():
    pipe = make("sd", "ddim")

    class Broken(BrightnessReward):
        def score(self, images, prompts):
            raise OSError("reward server is down")

    with pytest.raises(OSError, match="reward server is down"):
        steered(pipe, Broken())(PROMPT, num_inference_steps=STEPS)
    assert "progress_bar" not in vars(pipe)
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.unet._forward_hooks
