"""What the host does once for Qwen2.5-VL: images of one size are cut together, known prompts are not tokenised."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fk_reward.rewards.llava_reward.backbones.base import random_backbone
from fk_reward.rewards.llava_reward.model import _padded
from fk_reward.rewards.qwen_patches import PatchTransform
from tests.tiny.qwen2_5_vl import PREPROCESSOR

PROMPTS = ["a star", "a longer prompt about a star"]


@pytest.fixture
def backbone():
    return random_backbone("qwen2_5_vl")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "phi3_v"])
def test_kept_tokens_are_those_of_another_backbone(name):
    images, prompts = [torch.rand(3, 60, 90)] * 2, ["a star", "a longer prompt"]
    kept = random_backbone(name)
    kept.prepare(images, prompts)
    first, second = kept.prepare(images, prompts), random_backbone(name).prepare(images, prompts)
    for field in ("input_ids", "attention_mask", "image_mask", "pixel_values"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    assert len(kept._known) == 1
    kept.prepare(images, ["a star", "another one"])
    kept.prepare([torch.rand(3, 200, 40)] * 2, prompts)
    assert len(kept._known) == 3


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "prompt", "masked"),
    [("qwen2_5_vl", "a longer prompt", False), ("phi3_v", "a longer prompt", False), ("phi3_v", "star " * 300, True)],
)
def test_a_mask_only_where_longrope_would_read_padding(name, prompt, masked):
    backbone = random_backbone(name)
    inputs = backbone.prepare([torch.rand(3, 60, 90)] * 2, ["a star", prompt])
    assert not inputs.attention_mask.all(), "one row is padded"
    visual = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)
    assert ("attention_mask" in backbone.language_arguments(inputs, visual)) == masked


@pytest.fixture
def made(monkeypatch, backbone):
    """Prompts whose tokens were made, a list for each time."""
    calls, tokenized = [], backbone._tokenized
    monkeypatch.setattr(
        backbone, "_tokenized", lambda rows: calls.append([prompt for prompt, _ in rows]) or tokenized(rows)
    )
    return calls


def test_particles_of_a_prompt_are_tokenised_once(backbone, made):
    images = [torch.rand(3, 56, 56)] * 3 + [torch.rand(3, 84, 56)]
    prompts = ["a longer one", "a", "a longer one", "a"]
    together = backbone.prepare(images, prompts)
    assert made == [["a longer one", "a", "a"]], "the last image is of another size"
    alone = [backbone.prepare([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)]
    for row, inputs in enumerate(alone):
        length = inputs.input_ids.shape[1]
        assert torch.equal(together.input_ids[row, :length], inputs.input_ids[0])
        assert torch.equal(together.extras["position_ids"][:, row, :length], inputs.extras["position_ids"][:, 0])
        assert together.attention_mask[row].sum() == length


def check_cut_at_once(transform, images):
    expected = torch.cat([transform(image)[0] for image in images])
    assert torch.equal(transform.batch(images), expected)


@pytest.mark.parametrize("size", [(60, 100), (84, 56), (200, 31)])
def test_images_of_one_size_are_cut_as_one_by_one(size):
    images = torch.rand(3, 3, *size)
    for batch in (images, (images * 255).to(torch.uint8)):
        check_cut_at_once(PatchTransform.from_config(PREPROCESSOR), batch)


def test_images_in_another_order_are_noticed():
    class Reversed(PatchTransform):
        def batch(self, images):
            return super().batch(images.flip(0))

    with pytest.raises(AssertionError):
        check_cut_at_once(Reversed.from_config(PREPROCESSOR), torch.rand(2, 3, 60, 60))


def test_sizes_in_any_order_keep_their_places(backbone):
    images = [torch.rand(3, *size) for size in ((56, 56), (56, 56), (84, 56), (56, 56))]
    together = backbone.prepare(images, ["a"] * 4)
    alone = [backbone.prepare([image], ["a"]) for image in images]
    assert torch.equal(together.pixel_values, torch.cat([inputs.pixel_values for inputs in alone]))
    assert torch.equal(together.extras["grid_thw"], torch.cat([inputs.extras["grid_thw"] for inputs in alone]))


def test_tokens_are_made_once_for_prompts_and_sizes(backbone, made):
    images = [torch.rand(3, 56, 56), torch.rand(3, 56, 84)]
    first = backbone.prepare(images, PROMPTS)
    again = backbone.prepare([image.flip(2) for image in images], PROMPTS)
    assert len(made) == 1
    assert not torch.equal(first.pixel_values, again.pixel_values), "only tokens are remembered"
    fresh = random_backbone("qwen2_5_vl").prepare(images, PROMPTS)
    for inputs in (first, again):
        assert torch.equal(inputs.input_ids, fresh.input_ids)
        assert torch.equal(inputs.image_mask, fresh.image_mask)
        assert torch.equal(inputs.extras["position_ids"], fresh.extras["position_ids"])
    backbone.prepare(images[::-1], PROMPTS)
    backbone.prepare(images, PROMPTS[::-1])
    assert len(made) == 3


def test_few_batches_are_kept(backbone, made, monkeypatch):
    monkeypatch.setattr(backbone._known, "size", 2)
    images = [torch.rand(3, 56, 56)]
    for prompt in ("a", "b", "a", "c", "a", "b"):
        backbone.prepare(images, [prompt])
    assert made == [["a"], ["b"], ["c"], ["b"]], "the one that was not asked for longest is forgotten"


def test_tokens_from_inference_mode_serve_gradients(backbone, made):
    images = [torch.rand(3, 56, 56)]
    with torch.inference_mode():
        backbone.prepare(images, ["a"])
    inputs = backbone.prepare(images, ["a"])
    assert len(made) == 1
    assert not any(value.is_inference() for value in (inputs.input_ids, inputs.extras["position_ids"]))


def test_visual_tokens_of_one_size_are_not_padded():
    inputs = SimpleNamespace(num_visual_tokens=[3, 3])
    tokens = torch.rand(6, 4)
    ((alike, mask),) = _padded(inputs, [tokens])
    assert torch.equal(alike, torch.stack([tokens[:3], tokens[3:]]))
    assert alike.data_ptr() == tokens.data_ptr()
    assert mask.all()
    ((ragged, mask),) = _padded(SimpleNamespace(num_visual_tokens=[4, 2]), [tokens])
    assert torch.equal(ragged[mask], tokens)
    assert mask.sum(dim=1).tolist() == [4, 2]
