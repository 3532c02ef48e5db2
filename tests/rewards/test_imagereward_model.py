"""Every tensor of the official file is used or known to be unused; anything else raises."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fk_reward.rewards import ImageReward, load_reward
from fk_reward.rewards.imagereward_model import (
    UNUSED,
    ImageRewardConfig,
    ImageRewardModel,
    ImageRewardSizes,
    find_files,
    match_tensors,
    official_name,
    read_model,
)
from tests.tiny.imagereward import HEAD_SIZE, NUM_TOKENS, random_state_dict, write_bert_tokenizer

OFFICIAL_SHAPES = {  # by the authors' code: ViT-L/16 on 224 pixels, BERT-base that attends to it, an MLP
    "blip.visual_encoder.cls_token": (1, 1, 1024),
    "blip.visual_encoder.pos_embed": (1, 197, 1024),
    "blip.visual_encoder.patch_embed.proj.weight": (1024, 3, 16, 16),
    "blip.visual_encoder.blocks.23.attn.qkv.weight": (3072, 1024),
    "blip.visual_encoder.blocks.23.mlp.fc1.weight": (4096, 1024),
    "blip.visual_encoder.norm.bias": (1024,),
    "blip.text_encoder.embeddings.word_embeddings.weight": (30524, 768),
    "blip.text_encoder.encoder.layer.11.attention.self.key.weight": (768, 768),
    "blip.text_encoder.encoder.layer.11.crossattention.self.key.weight": (768, 1024),
    "blip.text_encoder.encoder.layer.11.output.LayerNorm.weight": (768,),
    "mlp.layers.0.weight": (1024, 768),
    "mlp.layers.6.weight": (16, 64),
    "mlp.layers.7.weight": (1, 16),
}


def is_unused(name):
    return any(re.fullmatch(rule, name) for rule in UNUSED)


def test_every_tensor_is_used_or_known_to_be_unused(imagereward_folder, smooth):
    """Noise on a tensor changes the raw score exactly if the tensor is not in the list of the unused ones."""
    state = random_state_dict()
    model = read_model(imagereward_folder / "ImageReward.pt").eval()
    ids = torch.tensor([[2, 5, 7, 9, 3, 0]])
    mask = (ids > 0).long()
    sizes = ImageRewardSizes.from_state_dict(state)
    pixels = torch.nn.functional.interpolate(smooth[:1], (sizes.image_size,) * 2)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        noise = 0.5 * torch.randn(tensor.shape, generator=generator)
        changed = match_tensors(state | {name: tensor + noise}, model.state_dict())
        with torch.no_grad():
            moved = torch.func.functional_call(model, changed, (pixels, ids, mask)) - model(pixels, ids, mask)
        idle = is_unused(name) or name.endswith(".self.key.bias")  # softmax ignores what all keys have in common
        assert (moved.abs().item() > 1e-6) == (not idle), name


def test_names_and_shapes_of_the_official_size():
    with init_empty_weights():
        model = ImageRewardModel(ImageRewardSizes.official())
    shapes = {official_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert OFFICIAL_SHAPES.items() <= shapes.items()
    assert len(shapes) == len(model.state_dict()) == 4 + 24 * 12 + 2 + 4 + 12 * 26 + 10
    assert model.vision.config.num_attention_heads == 16 and model.text.config.num_attention_heads == 12


def test_sizes_are_those_of_the_tensors():
    sizes = ImageRewardSizes.from_state_dict(random_state_dict())
    assert (sizes.image_size, sizes.patch_size, sizes.vision_layers, sizes.text_layers) == (32, 8, 2, 2)
    assert (sizes.vocab_size, sizes.max_positions, sizes.vision_mlp_width) == (NUM_TOKENS, 48, 384)


def without(name):
    state = random_state_dict()
    del state[name]
    return state


BROKEN = {
    "missing size": (without("blip.visual_encoder.cls_token"), "cls_token, but it is missing"),
    "missing tensor": (without("mlp.layers.4.bias"), "lacks tensors: mlp.layers.4.bias"),
    "missing layer": (without("blip.visual_encoder.blocks.1.attn.qkv.weight"), "lacks tensors: blip.visual"),
    "unexpected": (random_state_dict() | {"mlp.layers.8.weight": torch.ones(1)}, "mlp.layers.8.weight"),
    "momentum": (random_state_dict() | {"blip.temp": torch.ones(1)}, "does not have: blip.temp"),
    "shape": (random_state_dict() | {"mlp.layers.0.bias": torch.ones(3)}, r"mlp.layers.0.bias \(3,\), not \(24,\)"),
    "no square": (
        random_state_dict() | {"blip.visual_encoder.pos_embed": torch.ones(1, 8, 192)},
        "do not form a square",
    ),
    "another model": ({"logit_scale": torch.ones(1)}, "Not the weights of an ImageReward"),
    "flat": (random_state_dict() | {"blip.visual_encoder.cls_token": torch.ones(192)}, r"its shape is \(192,\)"),
}


@pytest.mark.parametrize(("state", "message"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_state_dict_raises(state, message, tmp_path):
    torch.save(state, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=message) as error:
        read_model(tmp_path / "ImageReward.pt")
    assert "ImageReward.pt" in str(error.value)


def test_a_damaged_or_dangerous_file_raises(tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"no pickle")
    (tmp_path / "dangerous.pt").write_bytes(pickle.dumps({"mlp": Path("somewhere")}))
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    torch.save(["a list"], tmp_path / "list.pt")
    for name in ("damaged.pt", "dangerous.pt", "damaged.safetensors", "list.pt"):
        with pytest.raises(ValueError, match=name):
            read_model(tmp_path / name)


def test_the_weights_are_in_memory_once_and_real(imagereward_folder):
    model = read_model(imagereward_folder / "ImageReward.pt", dtype=torch.float16)
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert {parameter.dtype for parameter in model.text.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in model.mlp.parameters()} == {torch.float32}


def test_saved_folder_gives_the_same_scores(imagereward, smooth, texts, tmp_path):
    imagereward.save_pretrained(tmp_path)
    loaded = load_reward("imagereward", weights=tmp_path)
    assert_close(loaded(smooth, texts), imagereward(smooth, texts), rtol=0, atol=0)
    names = set(load_file(tmp_path / "imagereward.safetensors"))
    assert names == {name for name in random_state_dict() if not is_unused(name)}


def test_the_folder_keeps_what_the_tensors_do_not_say(imagereward, smooth, tmp_path):
    config = ImageRewardConfig(head_size=32, max_tokens=8, mean=2.0, std=3.0)
    model = ImageRewardModel(imagereward.model.sizes, head_size=32)
    model.load_state_dict(imagereward.model.state_dict())
    reward = ImageReward(model, imagereward.prompts.tokenizer, config=config)
    reward.save_pretrained(tmp_path)
    loaded = ImageReward.from_pretrained(tmp_path)
    assert (loaded.config, loaded.card.max_prompt_tokens) == (config, 8)
    assert_close(loaded(smooth, "red"), reward(smooth, "red"), rtol=0, atol=0)
    assert ((loaded(smooth, "red") - imagereward(smooth, "red")).abs() > 1e-3).all()
    other = ImageReward.from_pretrained(tmp_path, head_size=HEAD_SIZE)
    assert ((loaded(smooth, "red") - other(smooth, "red")).abs() > 1e-4).any()


def test_a_folder_and_safetensors_of_the_official_tensors(imagereward, imagereward_folder, smooth, texts, tmp_path):
    tokenizer = imagereward_folder / "tokenizer"
    save_file(random_state_dict(), tmp_path / "weights.safetensors")
    for weights in (imagereward_folder, tmp_path / "weights.safetensors"):
        reward = load_reward("imagereward", weights=weights, tokenizer=tokenizer)
        assert_close(reward(smooth, texts), imagereward(smooth, texts), rtol=0, atol=0)


def test_the_hub_file_is_the_official_one(imagereward_folder, monkeypatch):
    asked = []

    def download(repo, file, *, revision):
        asked.append((repo, file, revision))
        return str(imagereward_folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    reward = load_reward("imagereward", tokenizer=imagereward_folder / "tokenizer", revision="v1")
    assert asked == [("zai-org/ImageReward", "ImageReward.pt", "v1")]
    assert reward.card.licence == "Apache-2.0"
    assert find_files("zai-org/ImageReward").tokenizer == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("name", ["nowhere/at/all", "ImageReward.pt", "nowhere.safetensors"])
def test_missing_files_raise(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name.split("/")[0]):
        load_reward("imagereward", weights=tmp_path / name)


def test_an_empty_folder_and_a_broken_configuration_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected ImageReward.pt or imagereward.json"):
        load_reward("imagereward", weights=tmp_path)
    (tmp_path / "imagereward.json").write_text(json.dumps({"head_size": 64}))
    with pytest.raises(ValueError, match=r"must have the keys \['head_size', 'max_tokens', 'mean', 'std'\]"):
        load_reward("imagereward", weights=tmp_path)


def test_the_tokenizer_must_be_that_of_the_text_encoder(imagereward_folder, tmp_path):
    write_bert_tokenizer(tmp_path)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(ValueError, match=f"{NUM_TOKENS} tokens, the tokenizer {NUM_TOKENS + 1}: pass tokenizer="):
        load_reward("imagereward", weights=imagereward_folder, tokenizer=tmp_path)


def test_a_head_size_that_does_not_fit_raises(imagereward_folder):
    with pytest.raises(ValueError, match="head_size must divide"):
        load_reward("imagereward", weights=imagereward_folder, tokenizer=imagereward_folder / "tokenizer", head_size=48)


@pytest.mark.parametrize("field", ["head_size", "max_tokens", "std"])
def test_configuration_is_checked(field):
    with pytest.raises(ValueError, match=f"{field} must be positive"):
        ImageRewardConfig(**{field: 0})
