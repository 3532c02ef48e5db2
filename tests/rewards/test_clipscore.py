"""CLIPScore against transformers' own CLIPModel and processor."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import CLIPScore, load_reward, reward_card

PROMPTS = ["a red circle", "blue square", "a red circle", "two green stars and 3 crosses"]


@pytest.fixture(scope="module")
def reward(tiny_clip):
    return CLIPScore.from_pretrained(tiny_clip)


@pytest.fixture(scope="module")
def images():
    """(4, 3, 48, 64) smooth random colours, so that PIL's rounding is all that differs."""
    coarse = torch.rand(4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (48, 64), mode="bilinear")


def official_cosines(folder, images, prompts):
    """`logits_per_image` of transformers divided by its temperature, for each pair of image and prompt: (B, B)."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder)
    arrays = list((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(arrays, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**pixels, **tokens).logits_per_image / model.logit_scale.exp()


def check_equals_transformers(scores, folder, images, prompts):
    assert_close(scores, official_cosines(folder, images, prompts).diagonal(), rtol=0, atol=2e-3)


def test_equals_transformers(reward, tiny_clip, images):
    scores = reward(images, PROMPTS)
    assert scores.std() > 0.02  # the tolerance means something
    check_equals_transformers(scores, tiny_clip, images, PROMPTS)


def test_equals_transformers_to_rounding_on_the_same_pixels(reward, tiny_clip, images):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(tiny_clip)
    tokens = CLIPTokenizer.from_pretrained(tiny_clip)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=reward.preprocessing(images), **tokens).logits_per_image
    assert_close(reward(images, PROMPTS), (logits / model.logit_scale.exp()).diagonal(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "saboteur",
    [
        lambda reward, images: reward(images, PROMPTS[1:] + PROMPTS[:1]),
        lambda reward, images: reward(images.flip(0), PROMPTS),
        lambda reward, images: reward(images.flip(1), PROMPTS),
        lambda reward, images: reward(images / 2, PROMPTS),
    ],
    ids=["swapped prompts", "swapped images", "swapped channels", "darker"],
)
def test_a_wrong_score_is_noticed(saboteur, reward, tiny_clip, images):
    with pytest.raises(AssertionError):
        check_equals_transformers(saboteur(reward, images), tiny_clip, images, PROMPTS)


def test_scale_multiplies_score_and_card(reward, tiny_clip, images):
    scaled = load_reward("clipscore", model=tiny_clip, scale=100.0)
    assert_close(scaled(images, PROMPTS), 100 * reward(images, PROMPTS))
    card = reward_card("clipscore")
    assert scaled.card.spread == pytest.approx(100 * card.spread)
    assert scaled.card.typical_range == pytest.approx([100 * bound for bound in card.typical_range])


def test_the_card_says_what_was_loaded(reward, tiny_clip):
    assert reward.card.weights == tiny_clip
    assert reward.card.spread is None
    assert reward.card.max_prompt_tokens == 32
    assert load_reward("clipscore", model=tiny_clip, batch_size=3).batch_size == 3


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_wrong_scale_raises(tiny_clip, scale):
    with pytest.raises(ValueError, match="scale"):
        CLIPScore.from_pretrained(tiny_clip, scale=scale)


def test_each_distinct_prompt_is_encoded_once(reward, images, monkeypatch):
    reward.text_cache.clear()
    rows = []
    encode = reward.model.get_text_features
    monkeypatch.setattr(
        reward.model, "get_text_features", lambda ids, **kwargs: rows.append(len(ids)) or encode(ids, **kwargs)
    )
    reward(images, PROMPTS)
    reward(images, PROMPTS)
    assert rows == [3]


def test_the_score_does_not_depend_on_the_padding(reward, images):
    alone = reward(images[:1], "red")
    assert_close(reward(images[:2], ["red", "a very long prompt"])[:1], alone, rtol=0, atol=1e-6)


def test_long_prompts_are_cut_with_one_warning(reward, images, caplog):
    prompt = "red " * 40  # 40 tokens and the two special ones
    with caplog.at_level(logging.WARNING, logger="fk_reward.rewards.prompt_limits"):
        first = reward(images, [prompt, "red", "red", "red"])
        reward(images, prompt)
    assert [record.getMessage() for record in caplog.records] == [
        f"clipscore reads 32 tokens; 10 were cut from {prompt!r}."
    ]
    assert_close(first[0], reward(images, "red " * 30)[0])


def test_just_fitting_prompts_are_not_warned_about(reward, images, caplog):
    reward(images, "red " * 30)
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights(reward, tiny_clip, images, dtype):
    half = CLIPScore.from_pretrained(tiny_clip, torch_dtype=dtype)
    assert half.model.dtype == dtype
    scores = half(images, PROMPTS)
    assert scores.dtype == torch.float32
    assert_close(scores, reward(images, PROMPTS), rtol=0, atol=0.05)


def test_to_changes_the_dtype(tiny_clip, images):
    reward = CLIPScore.from_pretrained(tiny_clip, torch_dtype=torch.bfloat16).to("cpu", torch.float32)
    assert reward.model.dtype == torch.float32
    assert reward.device == torch.device("cpu")


def test_weights_are_float32_unless_asked(tmp_path, tiny_clip):
    from transformers import CLIPModel

    CLIPScore.from_pretrained(tiny_clip, torch_dtype=torch.float16).tokenizer.save_pretrained(tmp_path)
    CLIPModel.from_pretrained(tiny_clip, dtype=torch.float16).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32, "crop_size": 32}')
    assert CLIPScore.from_pretrained(tmp_path).model.dtype == torch.float32


def test_gradient_agrees_with_finite_differences(tiny_clip):
    reward = CLIPScore.from_pretrained(tiny_clip)
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(1, 3, 40, 40, generator=generator)
    direction = torch.randn(1, 3, 40, 40, generator=generator)
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(image, "a red circle").sum(), image)
    with torch.no_grad():
        difference = reward(image + 1e-3 * direction, "a red circle") - reward(image - 1e-3 * direction, "a red circle")
    assert_close((gradient * direction).sum(), difference[0] / 2e-3, rtol=0.02, atol=1e-3)


def test_the_weights_get_no_gradient(reward, images):
    assert not reward(images, PROMPTS).requires_grad
    assert not reward.model.training


def test_missing_files_raise(tmp_path):
    with pytest.raises(OSError, match="config.json"):
        CLIPScore.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(OSError, match="model.safetensors"):
        CLIPScore.from_pretrained(tmp_path)


def test_the_embedded_clip_tells_pictures_apart(pictures, prompts):
    reward = load_reward("shapes-clipscore")
    straight, swapped = reward(pictures, prompts), reward(pictures, prompts[::-1])
    assert (straight > swapped + 0.05).all()
    folder = str(EMBEDDED_MODELS["shapes-clip"])
    tensor = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
    check_equals_transformers(straight, folder, tensor, prompts)
