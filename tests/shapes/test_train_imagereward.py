"""The recipe of `shapes-imagereward` in a few steps: its folder loads as a reward, and a resumed run is the run."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import load_reward
from fk_reward.rewards.imagereward import SHAPES_IMAGEREWARD
from tests.shapes.preference_fixtures import write_preferences


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    write_preferences(folder, num=8)
    return folder / "alignment"


def train(preferences, output_dir, **options):
    import train_imagereward

    train_imagereward.main(preferences, output_dir=output_dir, max_steps=4, batch_size=4, save_steps=2, **options)
    return output_dir / "shapes-imagereward"


@pytest.fixture(scope="module")
def trained(preferences, tmp_path_factory):
    return train(preferences, tmp_path_factory.mktemp("imagereward"))


def test_the_folder_loads_as_a_reward(trained, preferences):
    from train_imagereward import tensors_of

    from fk_reward.training import read_preferences

    reward = load_reward("imagereward", weights=trained)
    pairs = read_preferences(preferences / "validation.parquet")
    scores = reward(
        [image.load() for pair in pairs for image in pair.images], [p for pair in pairs for p in pair.prompts]
    )
    assert abs(scores.mean()) < 0.1 and abs(scores.std() - 1) < 0.1  # standardised on these pairs, up to float16
    assert reward.card.max_prompt_tokens == 16
    assert tensors_of(pairs, reward.prompts.tokenizer)["images"].shape == (8, 2, 3, 28, 28)


def test_the_entry_of_the_embedded_model_reads_the_folder(trained, monkeypatch):
    monkeypatch.setitem(EMBEDDED_MODELS, "shapes-imagereward", trained)
    reward = SHAPES_IMAGEREWARD.build(batch_size=2)
    assert (reward.card.name, reward.card.weights, reward.batch_size) == ("shapes-imagereward", "in the package", 2)
    assert {weight.dtype for weight in reward.model.parameters()} == {torch.float32}


def test_the_files_have_the_official_names_and_are_small(trained):
    tensors = load_file(trained / "imagereward.safetensors")
    assert all((tensor.dtype == torch.float32) == name.startswith("mlp.") for name, tensor in tensors.items())
    assert {name.split(".")[0] for name in tensors} == {"blip", "mlp"}
    assert json.loads((trained / "imagereward.json").read_text())["head_size"] == 32
    assert sum(file.stat().st_size for file in trained.iterdir()) < 3e6


def test_resumed_run_is_the_uninterrupted_run(trained, preferences, tmp_path):
    checkpoint = "checkpoints/checkpoint-2"
    shutil.copytree(trained.parent / checkpoint, tmp_path / "resumed" / checkpoint)
    resumed, other = (
        load_file(train(preferences, tmp_path / name, **options) / "imagereward.safetensors")
        for name, options in (("resumed", {"resume": True}), ("other", {"seed": 1}))
    )
    whole = load_file(trained / "imagereward.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)


def test_every_word_of_the_grammar_is_one_token():
    from train_imagereward import CONFIG, make_tokenizer

    from fk_reward.shapes import all_prompts

    tokenizer = make_tokenizer()
    lengths = [(len(tokenizer(prompt.text).input_ids), len(prompt.text.split()) + 2) for prompt in all_prompts()]
    assert all(got == expected <= CONFIG.max_tokens for got, expected in lengths)


def drawn_pixels():
    from fk_reward.rewards.preprocessing import TorchvisionPreprocessing
    from fk_reward.shapes import benchmark_prompts, render, sample_scene

    rng = np.random.default_rng(0)
    return TorchvisionPreprocessing.of_clip(64)(render([sample_scene(p, rng) for p in benchmark_prompts(12)]))


@torch.no_grad()
def test_the_tower_of_clip_sees_almost_the_same_in_blip():
    from train_imagereward import make_model, make_tokenizer
    from transformers import CLIPModel

    from fk_reward.models import resolve_model

    pixels, tokenizer = drawn_pixels(), make_tokenizer()
    clip = CLIPModel.from_pretrained(resolve_model("shapes-clip"))
    tower = clip.vision_model
    expected = tower.post_layernorm(tower(pixel_values=pixels).last_hidden_state)
    torch.manual_seed(0)
    models = [make_model(tokenizer, start, pixels) for start in (clip, None)]
    copied, fresh = (
        functional.cosine_similarity(model.vision(pixels).last_hidden_state, expected, dim=-1) for model in models
    )
    assert copied.mean() > 0.9
    assert fresh.mean() < 0.5


def test_the_loss_is_that_of_bradley_and_terry(preferences):
    from train_imagereward import PreferenceObjective, make_model, make_tokenizer, tensors_of

    from fk_reward.training import read_preferences

    tokenizer = make_tokenizer()
    pairs = read_preferences(preferences / "train.parquet")
    objective = PreferenceObjective(make_model(tokenizer, None, drawn_pixels())).eval()
    batch = tensors_of(pairs, tokenizer)
    chosen, rejected = objective.scores(**batch).unbind(1)
    expected = functional.softplus(rejected - chosen).mean()
    torch.testing.assert_close(objective(**batch)["loss"], expected)
    swapped = tensors_of([dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs], tokenizer)
    assert objective(**swapped)["loss"] != expected
