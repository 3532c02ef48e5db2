"""Distillation of `shapes-sd`: the algorithm against Diffusers' own schedulers, and the scripts in a few steps."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from fk_reward.models import model_source
from fk_reward.shapes import all_prompts, is_heldout


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusionPipeline.from_pretrained(model_source("shapes-sd", "a pipeline"))


@pytest.fixture(scope="module")
def latents_of(pipe):
    config = pipe.unet.config
    trained = [index for index, prompt in enumerate(all_prompts()) if not is_heldout(prompt)]
    shape = (24, config.in_channels, config.sample_size, config.sample_size)
    return {
        "latents": torch.randn(shape, generator=torch.Generator().manual_seed(0)),
        "prompts": torch.tensor([[index, -1] for index in trained[:: len(trained) // 24][:24]], dtype=torch.int16),
    }


@pytest.fixture
def objective(pipe):
    from distill import ConsistencyObjective, Distillation

    return ConsistencyObjective(pipe, Distillation(guidance_scale=3.0)).eval()


@torch.no_grad()
@pytest.mark.parametrize("start", [999, 499, 39])
def test_the_teachers_step_is_that_of_ddim_with_guidance(objective, pipe, latents_of, start):
    noisy, rows = latents_of["latents"][:3], latents_of["prompts"][:3, 0].long()
    steps = torch.full((3,), start)
    context, empty = objective.contexts[rows], objective.contexts[-1:].expand(3, -1, -1)
    moved = objective._teacher_step(noisy, steps, steps - 20, context, empty)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(50)
    velocities = [pipe.unet(noisy, start, encoder_hidden_states=one).sample for one in (empty, context)]
    velocity = velocities[0] + 3.0 * (velocities[1] - velocities[0])
    torch.testing.assert_close(moved, scheduler.step(velocity, start, noisy).prev_sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_contexts_are_those_of_the_pipeline(objective, pipe, latents_of):
    row = int(latents_of["prompts"][5, 0])
    embeds, empty = pipe.encode_prompt(all_prompts()[row].text, "cpu", 1, True)
    torch.testing.assert_close(objective.contexts[row : row + 1], embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(objective.contexts[-1:], empty, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_answer_is_that_of_the_scheduler_that_will_draw(objective, pipe, latents_of):
    noisy, rows = latents_of["latents"][:3], latents_of["prompts"][:3, 0].long()
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    for timestep in (999, 19):
        scheduler.set_timesteps(timesteps=[timestep])
        velocity = pipe.unet(noisy, timestep, encoder_hidden_states=objective.contexts[rows]).sample
        expected = scheduler.step(velocity, timestep, noisy).denoised
        answer = objective.answer(pipe.unet, noisy, torch.full((3,), timestep), objective.contexts[rows])
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
    zero = objective.answer(pipe.unet, noisy, torch.zeros(3, dtype=torch.long), objective.contexts[rows])
    torch.testing.assert_close(zero, noisy)  # the boundary condition


def test_only_the_student_learns_and_the_target_lags(pipe, latents_of):
    from distill import ConsistencyObjective, Distillation

    objective = ConsistencyObjective(pipe, Distillation(target_decay=0.75)).train()
    optimizer = torch.optim.SGD([one for one in objective.parameters() if one.requires_grad], lr=0.05)
    first, teacher = next(objective.student.parameters()), next(objective.teacher.parameters())
    target, before = next(objective.target.parameters()), next(objective.teacher.parameters()).clone()
    expected = before.clone()
    for _ in range(3):
        expected = expected.lerp(first.detach(), 0.25)
        optimizer.zero_grad()
        objective(**latents_of)["loss"].backward()
        torch.testing.assert_close(target, expected)
        optimizer.step()
    assert torch.equal(teacher, before) and not torch.equal(first, before)
    assert {id(one) for one in objective.parameters() if one.requires_grad} == {
        id(one) for one in objective.student.parameters()
    }


def test_the_script_and_a_resumed_run(latents_of, tmp_path):
    import distill

    save_file(latents_of, tmp_path / "latents.safetensors")
    distill.main(latents=tmp_path / "latents.safetensors", output_dir=tmp_path / "out", smoke=True)
    folder = tmp_path / "out" / "shapes-sd-lcm"
    made = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(made.scheduler, LCMScheduler) and made.scheduler.config.prediction_type == "v_prediction"
    made.set_progress_bar_config(disable=True)
    images = made("a photo of a star", num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    distill.main(latents=tmp_path / "latents.safetensors", output_dir=tmp_path / "out", smoke=True, resume=True)


def test_measuring(tmp_path, monkeypatch):
    import measure_few_steps as script

    assert set(script.methods(2, 50)) == {"plain", "best of N", "noise search", "FK"}
    assert "FK" not in script.methods(1, 50)
    output = tmp_path / "out.json"
    script.main("shapes-sd", "shapes-clipscore", num_prompts=2, num_steps=(1, 2), budget=4, output=output)
    found = json.loads(output.read_text())["num_steps"]
    assert found["1"]["noise search"]["sample_steps"] == found["1"]["best of N"]["sample_steps"] == 4
    assert found["2"]["FK"]["sample_steps"] == 4 and found["2"]["plain"]["sample_steps"] == 2
    monkeypatch.setattr(script, "draw", None)  # what has been measured is not measured again
    script.main("shapes-sd", "shapes-clipscore", num_prompts=2, num_steps=(1, 2), budget=4, output=output)
    with pytest.raises(ValueError, match="name another file"):
        script.main("shapes-sd", "shapes-clipscore", num_prompts=3, num_steps=(1,), budget=4, output=output)
    assert found["2"]["best of N"]["accuracy_gain"] is None and "estimate" in found["2"]["FK"]["accuracy_gain"]
