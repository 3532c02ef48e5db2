"""The models that ship in the package: loadable alone, and as good as the documentation says, with room for chance."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from fk_reward.models import ASSETS, resolve_model
from fk_reward.shapes import benchmark_prompts, parse_prompt, render, sample_scene, verify


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    prompts = benchmark_prompts(60) + benchmark_prompts(60, "validation")
    return prompts, render([sample_scene(prompt, rng) for prompt in prompts])


def accuracy(images, prompts):
    return np.mean([verify(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)])


@pytest.mark.long
@torch.no_grad()
def test_verifier_is_right_after_the_vae(scenes):
    prompts, images = scenes
    vae = AutoencoderKL.from_pretrained(resolve_model("shapes-sd"), subfolder="vae")
    decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample
    assert accuracy((decoded / 2 + 0.5).clamp(0, 1), prompts) >= 0.99
    halved = vae.decode(0.5 * vae.encode(images * 2 - 1).latent_dist.mean).sample  # a wrong scaling factor
    assert accuracy((halved / 2 + 0.5).clamp(0, 1), prompts) < 0.9


@torch.no_grad()
def test_latents_are_white(scenes):
    vae = AutoencoderKL.from_pretrained(resolve_model("shapes-sd"), subfolder="vae")
    latents = vae.encode(scenes[1] * 2 - 1).latent_dist.mean
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.15, rtol=0)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.15, rtol=0)


def mean_score(images, prompts):
    return np.mean([verify(image, prompt).score for image, prompt in zip(images, prompts, strict=True)])


def test_pipeline_draws_what_it_is_asked_for():
    pipe = DiffusionPipeline.from_pretrained(resolve_model("shapes-sd"))
    assert isinstance(pipe, StableDiffusionPipeline)
    pipe.set_progress_bar_config(disable=True)
    texts = [f"a photo of a {color} {shape}" for color, shape in (("red", "star"), ("blue", "square"))] * 6
    prompts = [parse_prompt(text) for text in texts]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(texts))]
    images = pipe(texts, num_inference_steps=20, guidance_scale=3.0, eta=1.0, generator=seeds, output_type="pt").images
    assert images.shape == (12, 3, 64, 64)
    assert mean_score(images, prompts) > mean_score(images, prompts[1:] + prompts[:1]) + 0.2


@pytest.mark.long
def test_held_out_prompts_are_drawn_right_often_enough_and_not_too_often():
    """So that a reward has something to choose from, and something to gain: the documentation has 0.64 of 300."""
    pipe = StableDiffusionPipeline.from_pretrained(resolve_model("shapes-sd"))
    pipe.set_progress_bar_config(disable=True)
    prompts = benchmark_prompts(60)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    settings = {"num_inference_steps": 50, "guidance_scale": 3.0, "eta": 1.0, "output_type": "pt"}
    images = pipe([prompt.text for prompt in prompts], generator=seeds, **settings).images
    assert 0.5 <= accuracy(images, prompts) <= 0.75
    assert accuracy(images, prompts[1:] + prompts[:1]) < 0.1


def test_scheduler_needs_no_correction():
    config = json.loads((ASSETS / "shapes-sd" / "scheduler" / "scheduler_config.json").read_text())
    expected = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    assert expected.items() <= config.items()


def test_weights_are_fp16_safetensors_of_modest_size():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 36e6
    dtypes = {
        t.dtype
        for path in files
        if path.suffix == ".safetensors"
        for t in load_file(path).values()
        if t.is_floating_point()
    }
    assert dtypes == {torch.float16}


def test_files_say_nothing_of_the_machine_that_they_were_made_on():
    texts = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.rglob("*.json")}
    assert texts
    for name, text in texts.items():
        assert '"_name_or_path"' not in text and "runs/" not in text, name


@torch.no_grad()
def test_clip_knows_held_out_captions():
    folder = resolve_model("shapes-clip")
    clip, processor = (
        CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval(),
        CLIPProcessor.from_pretrained(folder),
    )
    prompts, rng = benchmark_prompts(90), np.random.default_rng(1)
    images = [
        image.permute(1, 2, 0).mul(255).byte().numpy() for image in render([sample_scene(p, rng) for p in prompts])
    ]
    texts = sorted({prompt.text for prompt in prompts})
    inputs = processor(text=texts, images=images, padding="max_length", return_tensors="pt")
    chosen = [texts[i] for i in clip(**inputs).logits_per_image.argmax(1)]
    right = np.mean([text == prompt.text for text, prompt in zip(chosen, prompts, strict=True)])
    shuffled = np.mean([text == prompt.text for text, prompt in zip(chosen[1:] + chosen[:1], prompts, strict=True)])
    assert right > 0.4 > 10 * shuffled
