"""CLIPScore against transformers' own CLIPModel and processor."""

from __future__ import annotations

import logging
import shutil
import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import CLIPScore, load_reward, reward_card
from tests.tiny.tokenizers import make_clip_tokenizer

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


PREFIX = "A photo depicts "


HESSEL_PROMPTS = ["a red circle", "blue square", "7", "two green stars", "r", "zzz"]


@pytest.fixture(scope="module")
def folders(tiny_clip, tmp_path_factory):
    """The tiny CLIP, whose cosines all are negative, and its opposite."""
    from transformers import CLIPModel

    folder = shutil.copytree(tiny_clip, tmp_path_factory.mktemp("opposite"), dirs_exist_ok=True)
    model = CLIPModel.from_pretrained(tiny_clip)
    model.text_projection.weight.data.neg_()
    model.save_pretrained(folder)
    return {"negative": tiny_clip, "positive": str(folder)}


@pytest.fixture(scope="module")
def hessel(folders):
    return load_reward("clipscore", model=folders["positive"], hessel=True)


@pytest.fixture(scope="module")
def hessel_images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def check_is_the_published_score(scores, folder, hessel_images):
    """2.5 max(cosine, 0) of pictures and prefixed prompts, with transformers' own forward pass."""
    from transformers import CLIPModel, CLIPTokenizer

    model, plain = CLIPModel.from_pretrained(folder), CLIPScore.from_pretrained(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(
        [PREFIX + prompt for prompt in HESSEL_PROMPTS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(pixel_values=plain.preprocessing(hessel_images), **tokens).logits_per_image
    assert_close(scores, 2.5 * (logits / model.logit_scale.exp()).diagonal().clamp(min=0), rtol=0, atol=1e-5)


def test_is_the_published_score(hessel, folders, hessel_images):
    scores = hessel(hessel_images, HESSEL_PROMPTS)
    assert scores.min() > 0
    check_is_the_published_score(scores, folders["positive"], hessel_images)


def test_negative_cosines_become_zero(folders, hessel_images):
    scores = CLIPScore.from_pretrained(folders["negative"], hessel=True)(hessel_images, HESSEL_PROMPTS)
    assert scores.tolist() == [0.0] * 6
    check_is_the_published_score(scores, folders["negative"], hessel_images)


@pytest.mark.parametrize(
    ("saboteur", "sign"),
    [
        (
            lambda plain, hessel_images: 2.5 * plain(hessel_images, [PREFIX + prompt for prompt in HESSEL_PROMPTS]),
            "negative",
        ),
        (lambda plain, x: 2.5 * plain(x, HESSEL_PROMPTS), "positive"),
        (lambda plain, x: plain(x, [PREFIX + prompt for prompt in HESSEL_PROMPTS]), "positive"),
        (
            lambda plain, hessel_images: (
                2.5 * plain(hessel_images, [PREFIX + prompt for prompt in HESSEL_PROMPTS[::-1]])
            ),
            "positive",
        ),
    ],
    ids=["not clipped", "no prefix", "no weight", "prompts"],
)
def test_a_wrong_published_score_is_noticed(saboteur, sign, folders, hessel_images):
    plain = CLIPScore.from_pretrained(folders[sign])
    with pytest.raises(AssertionError, match="not close"):
        check_is_the_published_score(saboteur(plain, hessel_images), folders[sign], hessel_images)


def test_the_card_says_so(hessel, tiny_clip):
    assert hessel.card.typical_range == pytest.approx((0.25, 0.875))
    assert hessel.card.spread == pytest.approx(0.05)
    assert hessel.card.summary == "2.5 times the cosine of CLIP ViT-L/14 image and text embeddings, at least 0"
    other = CLIPScore.from_pretrained(tiny_clip, hessel=True, scale=100.0)
    assert other.card.typical_range == (0.0, 250.0)


def test_the_prefix_counts_among_the_tokens(hessel, hessel_images, caplog):
    prefix_tokens = len(hessel.tokenizer(PREFIX)["input_ids"]) - 2
    with caplog.at_level(logging.WARNING, logger="fk_reward.rewards.prompt_limits"):
        hessel(hessel_images[:1], "red " * (30 - prefix_tokens))
        assert not caplog.records
        hessel(hessel_images[:1], "red " * (31 - prefix_tokens))
    assert "1 were cut from 'A photo depicts red" in caplog.records[0].getMessage()


def test_plain_cosine_is_the_default(tiny_clip, hessel_images):
    assert load_reward("clipscore", model=tiny_clip)(hessel_images, HESSEL_PROMPTS).min() < 0


@pytest.fixture(scope="module")
def tokens():
    tokenizer = make_clip_tokenizer()
    return lambda prompt: tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize(
    ("prompt", "same"),
    [("A Red  Circle\n", "a red circle"), ("cafe\u0301", "caf\u00e9")],
    ids=["capitals and white space", "composed letters"],
)
def test_levelled_by_all(tokens, prompt, same):
    assert tokens(prompt) == tokens(same)


@pytest.mark.parametrize(
    ("prompt", "mended"),
    [
        ("a \u201cred\u201d circle", 'a "red" circle'),
        ("salt &amp; pepper", "salt & pepper"),
        ("a \ufb01re", "a fire"),
        ("\uff41 cat", "a cat"),
    ],
    ids=["curly quotes", "HTML entity", "ligature", "full width"],
)
def test_mended_by_ftfy_and_not_here(tokens, prompt, mended):
    assert tokens(prompt) != tokens(mended), "docs/rewards.md says that these differ"


NUM_IMAGES = 64
PROMPT = "a photo of a red circle"


@pytest.fixture(scope="module")
def larger_clip():
    """In chunks of 16, whose activations stay in a CPU's cache; one call all the same."""
    return load_reward("shapes-clipscore", batch_size=16)


@pytest.fixture(scope="module")
def many_images():
    return torch.rand(NUM_IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def cpu_seconds(run):
    """Processor time of the fastest of five runs, so that other programs do not count."""
    durations = []
    for _ in range(5):
        start = time.process_time()
        run()
        durations.append(time.process_time() - start)
    return min(durations)


def check_batches_pay(together, singly):
    ratio = cpu_seconds(singly) / cpu_seconds(together)
    assert ratio > 2, f"only {ratio:.2f} times faster"


def singly(larger_clip, many_images):
    return torch.cat([larger_clip(image[None], PROMPT) for image in many_images])


@pytest.mark.long
def test_a_batch_is_much_faster_than_its_images(larger_clip, many_images):
    assert_close(larger_clip(many_images, PROMPT), singly(larger_clip, many_images), rtol=0, atol=1e-5)
    check_batches_pay(lambda: larger_clip(many_images, PROMPT), lambda: singly(larger_clip, many_images))


@pytest.mark.long
def test_a_batch_scored_image_by_image_is_noticed(larger_clip, many_images, monkeypatch):
    monkeypatch.setattr(larger_clip, "batch_size", 1)
    with pytest.raises(AssertionError, match="only"):
        check_batches_pay(lambda: larger_clip(many_images, PROMPT), lambda: singly(larger_clip, many_images))
