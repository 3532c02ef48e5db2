"""CLIP-FlanT5 against a second, plain way through the official layout: sample by sample, part by part."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fk_reward.rewards import load_reward
from fk_reward.rewards.answer_model import load_answer_model
from fk_reward.rewards.inputs import to_pil
from tests.tiny.answer_models import write_clip_t5

PROMPTS = ["a red cat", "two dogs on a skateboard", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_t5(tmp_path_factory.mktemp("clip-t5"))


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward("vqascore", model=folder, torch_dtype=torch.float32)


class Plain:
    """The published forward pass, on one picture of the tower's size at a time."""

    def __init__(self, folder) -> None:
        weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
        config = json.loads((folder / "config.json").read_text())
        config = {name: value for name, value in config.items() if not name.startswith("mm_")}
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tower = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder / "tower")).eval()
        self.projector = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
        self.t5 = T5ForConditionalGeneration(T5Config(**config)).eval()
        for module, prefix in (
            (self.tower, "vision_tower.vision_tower.vision_model."),
            (self.projector, "mm_projector."),
            (self.t5, ""),
        ):
            names = module.state_dict()
            module.load_state_dict({name: weights[prefix + name] for name in names})
        self.t5.resize_token_embeddings(len(self.tokenizer))
        self.images = CLIPImageProcessorPil.from_pretrained(folder / "tower")

    @torch.no_grad()
    def log_probabilities(self, image: Image.Image, prompt: str) -> Tensor:
        """(2,): log P("Yes") and log P(end | "Yes"), whose mean is the official score's logarithm."""
        pixels = self.images(image, return_tensors="pt")["pixel_values"]
        visual = self.projector(self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
        text = (
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: <image>\n"
            f'Does this figure show "{prompt}"? Please answer yes or no. ASSISTANT: '
        )
        chunks = [self.t5.shared(self.tokenizer(x, return_tensors="pt").input_ids) for x in text.split("<image>")]
        labels = self.tokenizer("Yes", return_tensors="pt").input_ids
        logits = self.t5(inputs_embeds=torch.cat([chunks[0], visual, chunks[1]], dim=1), labels=labels).logits
        return logits[0].log_softmax(-1).gather(1, labels[0, :, None]).squeeze(1)


def check_against_plain(reward, folder, images) -> None:
    plain, images = Plain(folder), images[..., :32, :32]
    terms = torch.stack([plain.log_probabilities(*pair) for pair in zip(to_pil(images), PROMPTS, strict=True)])
    assert terms.shape == (3, 2)
    expected = terms.mean(dim=1) if reward.whole_answer else terms[:, 0]
    assert_close(reward(images, PROMPTS).log(), expected, rtol=0, atol=1e-3)
    assert_close(reward(images, PROMPTS), expected.exp(), rtol=0, atol=1e-4)


def test_published_forward_pass(reward, folder, images):
    check_against_plain(reward, folder, images)


def test_the_first_token_alone_is_an_option(folder, images):
    reward = load_reward("vqascore", model=folder, torch_dtype=torch.float32, whole_answer=False)
    check_against_plain(reward, folder, images)


def test_the_first_token_in_place_of_the_whole_answer_is_noticed(reward, folder, images, monkeypatch):
    monkeypatch.setattr(reward, "score", load_reward("vqascore", model=folder, whole_answer=False).score)
    with pytest.raises(AssertionError):
        check_against_plain(reward, folder, images)


def test_another_layer_of_the_tower_is_noticed(reward, folder, images, monkeypatch):
    monkeypatch.setattr(reward.model.model.config, "mm_vision_select_layer", -1)
    with pytest.raises(AssertionError):
        check_against_plain(reward, folder, images)


def test_pictures_become_squares_as_the_official_code_has_it(reward, images):
    processor = reward.model.processor
    colour = tuple(int(mean * 255) for mean in processor.pixels.mean)
    square = Image.new("RGB", (56, 56), colour)
    square.paste(to_pil(images)[0], (0, 8))
    expected = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)(square, return_tensors="pt")
    got = processor.pixel_transform(images[:1])
    assert_close(got, expected["pixel_values"], rtol=0, atol=2 / 255 / min(processor.pixels.std))


def test_a_row_does_not_depend_on_its_batch(reward, images):
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i]) for i in range(3)])
    assert_close(reward(images, PROMPTS), alone, rtol=0, atol=1e-6)


def test_gradients_reach_the_images(reward, images):
    images = images.clone().requires_grad_()
    reward(images, PROMPTS)[0].backward()
    assert reward.card.differentiable
    assert images.grad[0].abs().max() > 0
    assert images.grad[1:].abs().max() == 0


def test_another_projector_raises(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"mm_projector_type": "linear"}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mm_projector_type must be 'mlp2x_gelu', got 'linear'"):
        load_answer_model(tmp_path / "copy")


def test_missing_weights_raise(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["mm_projector.2.bias"]
    torch.save(weights, tmp_path / "copy" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks weights.*mm_projector\.2\.bias"):
        load_answer_model(tmp_path / "copy")
