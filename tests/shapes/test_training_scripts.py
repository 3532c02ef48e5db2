"""The recipes run from tokenizer to models in a few steps, and a resumed run is the run."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with a tokenizer, scenes, a VAE and its whitened latents."""
    import make_scenes
    import train_tokenizer
    import train_vae

    folder = tmp_path_factory.mktemp("runs")
    train_tokenizer.main(folder / "tokenizer")
    make_scenes.make_captioned(folder / "scenes.safetensors", num_scenes=200)
    train_vae.main(folder / "scenes.safetensors", folder / "vae", max_steps=2, batch_size=4)
    make_scenes.make_latents(folder / "scenes.safetensors", folder / "vae", folder / "whitened")
    return folder


def train_unet(runs, output_dir, **options):
    import train_unet

    train_unet.main(
        runs / "tokenizer", runs / "whitened", output_dir, max_steps=4, batch_size=4, save_steps=2, **options
    )
    return load_file(output_dir / "shapes-sd" / "unet" / "diffusion_pytorch_model.safetensors")


def test_every_word_of_the_grammar_is_one_token(runs):
    from fk_reward.shapes import all_prompts

    tokenizer = CLIPTokenizer.from_pretrained(runs / "tokenizer")
    assert all(len(tokenizer(p.text).input_ids) == len(p.text.split()) + 2 for p in all_prompts())
    ids = tokenizer("a photo of a dog", padding="max_length").input_ids
    assert (
        len(ids) == tokenizer.model_max_length and tokenizer.decode(ids, skip_special_tokens=True) == "a photo of a dog"
    )


def test_no_held_out_prompt_is_a_caption(runs):
    from fk_reward.shapes import all_prompts, is_heldout

    captions = {all_prompts()[i] for i in load_file(runs / "scenes.safetensors")["prompts"].tolist()}
    assert len(captions) > 50 and not any(map(is_heldout, captions))


@torch.no_grad()
def test_whitening_is_folded_into_the_vae(runs):
    from make_scenes import encode

    images = load_file(runs / "scenes.safetensors")["images"][:20]
    plain, whitened = (AutoencoderKL.from_pretrained(runs / name).eval() for name in ("vae", "whitened/vae"))
    latents = load_file(runs / "whitened" / "latents.safetensors")["latents"].float()
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(encode(whitened, images), latents[:20], atol=0.1, rtol=0)  # bfloat16
    pixels = images / 127.5 - 1
    before = plain.decode(plain.encode(pixels).latent_dist.mean).sample
    after = whitened.decode(whitened.encode(pixels).latent_dist.mean).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_resumed_run_is_the_uninterrupted_run(runs, tmp_path):
    whole = train_unet(runs, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-2", tmp_path / "resumed/checkpoints/checkpoint-2")
    resumed = train_unet(runs, tmp_path / "resumed", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = train_unet(runs, tmp_path / "other", seed=1)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "whole" / "shapes-sd")
    assert pipe("a photo of a star", num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)


def test_clip_trains_and_loads(runs, tmp_path):
    import train_clip

    train_clip.main(runs / "tokenizer", runs / "scenes.safetensors", output_dir=tmp_path, max_steps=2, batch_size=8)
    clip = CLIPModel.from_pretrained(tmp_path / "shapes-clip", torch_dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(tmp_path / "shapes-clip")
    inputs = processor(text=["a photo of a star"], images=torch.rand(3, 64, 64), do_rescale=False, return_tensors="pt")
    assert clip(**inputs).logits_per_image.isfinite().all()


def test_hard_negatives_differ_in_one_respect():
    from prompt_sides import hard_negatives

    from fk_reward.shapes import parse_prompt

    kinds = hard_negatives(parse_prompt("a photo of a red circle and a blue square"))
    assert {kind: len(found) for kind, found in kinds.items()} == {"shape": 8, "color": 10, "swap": 1}
    assert kinds["swap"][0].text == "a photo of a blue circle and a red square"
    kinds = hard_negatives(parse_prompt("a photo of a star left of a cross"))
    assert {kind: len(found) for kind, found in kinds.items()} == {"shape": 8, "relation": 3, "swap": 1}


def test_captions_that_are_true_of_another_image_are_no_negatives():
    from train_clip import ContrastiveObjective

    true = torch.tensor([[3, 5], [5, -1]])
    prompts = torch.tensor([3, 5])
    assert ContrastiveObjective.false_negatives(true, prompts).tolist() == [[False, True], [False, False]]
