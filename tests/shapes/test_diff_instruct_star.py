"""Diff-Instruct* in small: the gradient of its divergence in closed form, who learns what, and the script."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from fk_reward import load_reward
from fk_reward.models import model_source
from tests.shapes.test_distill import latents_of, pipe  # noqa: F401 (fixtures)


@pytest.mark.parametrize("sigma", [0.3, 0.9])
@pytest.mark.parametrize("detached", [False, True])
def test_the_gradient_is_that_of_the_divergence(sigma, detached):
    """Generator N(theta, 1), reference N(m, 1): both predictions of x0 and their distance are known.

    With a detached sample the prediction does not move with it, and the gradient is another one: the saboteur.
    """
    from diff_instruct_star import divergence_loss

    alpha, mean, huber = (1 - sigma**2) ** 0.5, 2.0, 0.5
    theta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 4096, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = theta + noise[0]
    noisy = alpha * x0 + sigma * noise[1]
    seen = noisy.detach() if detached else noisy
    online, reference = (m + alpha * (seen - alpha * m) for m in (theta.detach(), torch.tensor(mean)))
    (found,) = torch.autograd.grad(divergence_loss(x0, online, reference, huber=huber), theta)
    apart = ((theta - mean) * sigma**2).requires_grad_()
    (expected,) = torch.autograd.grad((apart.square() + huber**2).sqrt(), theta)
    assert (abs(found - expected) < 1e-9) == (not detached)


def test_each_network_learns_from_its_own_loss(pipe, latents_of):  # noqa: F811
    from diff_instruct_star import DiffInstructStar

    teacher = StableDiffusionPipeline.from_pretrained(model_source("shapes-sd", "a pipeline"))
    reward = load_reward("shapes-clipscore")
    objective = DiffInstructStar(pipe, teacher, reward, reward_scale=1.0, guidance_scale=3.0)
    x0 = torch.randn(2, *latents_of["latents"].shape[1:], requires_grad=True)
    context, timesteps = objective.contexts[:2], torch.tensor([500, 100])
    objective._online_answer(x0, timesteps, context).sum().backward()
    assert x0.grad.abs().sum() > 0 and all(one.grad is None for one in objective.online.parameters())
    objective._online_loss(x0.detach(), torch.randn_like(x0), timesteps, context).backward()
    assert all(one.grad is None for one in objective.generator.parameters())
    rewards = objective._rewards(objective.generate(torch.randn_like(x0), context), ["a photo of a star"] * 2)
    rewards.sum().backward()
    assert next(objective.generator.parameters()).grad.abs().sum() > 0
    assert all(one.grad is None for one in objective.reference.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("num_levels", "first"), [(16, 991), (50, 999)])
def test_the_generator_is_trained_where_the_scheduler_will_call_it(pipe, num_levels, first):  # noqa: F811
    """What is trained is what the saved pipeline draws from the same noise."""
    from diff_instruct_star import DiffInstructStar

    scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=num_levels)
    generator = StableDiffusionPipeline(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    objective = DiffInstructStar(generator, pipe, load_reward("shapes-clipscore"), reward_scale=1.0, guidance_scale=3.0)
    assert objective.last == first
    shape = (1, pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    embeds, _ = generator.encode_prompt("a photo of a star", "cpu", 1, do_classifier_free_guidance=False)
    generator.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "latents": noise}
    drawn = generator("a photo of a star", **call).images
    torch.testing.assert_close(objective.generate(noise, embeds), drawn, atol=1e-4, rtol=1e-4)


def test_the_script(latents_of, tmp_path):  # noqa: F811
    import diff_instruct_star as script

    save_file(latents_of, tmp_path / "latents.safetensors")
    script.main("shapes-sd", latents=tmp_path / "latents.safetensors", output_dir=tmp_path / "out", smoke=True)
    made = DiffusionPipeline.from_pretrained(tmp_path / "out" / "shapes-sd-star")
    made.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "np"}
    assert made("a photo of a star", **call).images.shape == (1, 64, 64, 3)
