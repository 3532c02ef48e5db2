"""UnifiedReward's expectations against transformers' own processor and model, one image and text at a time."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import Qwen3VLForConditionalGeneration

from fk_reward.rewards import load_reward
from fk_reward.rewards.answer_model import load_processor
from fk_reward.rewards.inputs import to_pil
from tests.tiny.author_words import write_author_words

PROMPTS = ["a red cat", "a {blue} dog", "x"]
LABELS = ("Alignment Score (1-5): ", "Coherence Score (1-5): ", "Style Score (1-5): ")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_author_words(tmp_path_factory.mktemp("words")).unified


@pytest.fixture(scope="module")
def load(folders, words):
    def load(**options):
        made = {"model": folders["qwen3_vl"], "words": words, "torch_dtype": torch.float32} | options
        return load_reward("unified-reward", **made)

    return load


@pytest.fixture(scope="module")
def eight_bit(images):
    return (images * 255).round().to(torch.uint8)


def probabilities(model, processor, image, text, answers):
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    tokens = [processor.tokenizer.convert_tokens_to_ids(answer) for answer in answers]
    with torch.no_grad():
        return model(**inputs).logits[0, -1, tokens].softmax(dim=-1).tolist()


def marks_one_by_one(folder, image, prompt):
    """The three expectations, by a loop over digits."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = load_processor(folder)
    question = "Mark the image for its caption, from 1 to 5.\n" + "X\n".join(LABELS[:1]) + "X\n"
    question += f"{LABELS[1]}Y\n{LABELS[2]}Z\nText Caption: [{prompt}]"
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    marks = []
    for label in LABELS:
        text += label
        whole = probabilities(model, processor, image, text, "12345")
        likely = sorted(range(5), key=lambda place: -whole[place])[:2]
        total, written = 0.0, ""
        for place in likely:
            decimals = probabilities(model, processor, image, f"{text}{place + 1}.", "0123456789")
            value = place + 1 + sum(digit * share for digit, share in enumerate(decimals)) / 10
            total += whole[place] * min(value, 5.0)
            written = written or f"{place + 1}.{decimals.index(max(decimals))}"
        marks.append(total / sum(whole[place] for place in likely))
        text += f"{written}\n"
    return marks


def test_equals_a_loop_over_digits(load, folders, eight_bit):
    expected = [
        marks_one_by_one(folders["qwen3_vl"], image, prompt)
        for image, prompt in zip(to_pil(eight_bit), PROMPTS, strict=True)
    ]
    expected = torch.tensor(expected)
    found = torch.stack(list(load().marks(eight_bit, PROMPTS).values()), dim=1)
    assert expected.std(dim=0).min() > 1e-3
    assert_close(found, expected, rtol=0, atol=1e-4)
    assert_close(load()(eight_bit, PROMPTS), expected.mean(dim=1), rtol=0, atol=1e-4)
    for place, aspect in enumerate(("alignment", "coherence", "style")):
        assert_close(load(aspect=aspect)(eight_bit, PROMPTS), expected[:, place], rtol=0, atol=1e-4)


def test_whole_digits_alone_would_be_noticed(load, eight_bit):
    reward = load(aspect="alignment")
    questions = [reward.question.replace("{prompt}", prompt) for prompt in PROMPTS]
    logits = reward.model(eight_bit, questions, opening=LABELS[0])[:, reward.whole]
    whole = logits.softmax(dim=-1) @ torch.arange(1.0, 6.0)
    assert (reward(eight_bit, PROMPTS) - whole).abs().max() > 0.05


def marks_by_whole_passes(reward, images, prompts):
    """As before rows were continued: images, questions and openings are read anew for every digit."""
    questions = [reward.question.replace("{prompt}", prompt) for prompt in prompts]
    openings, found = [""] * len(prompts), []
    for label in LABELS:
        openings = [opening + label for opening in openings]
        share, kept = reward.model(images, questions, opening=openings)[:, reward.whole].softmax(dim=-1).topk(2, dim=1)
        begun = [f"{opening}{1 + n}." for opening, row in zip(openings, kept.tolist(), strict=True) for n in row]
        asked = [question for question in questions for _ in range(2)]
        logits = reward.model(images.repeat_interleave(2, dim=0), asked, opening=begun)[:, reward.tenths]
        decimals = logits.softmax(dim=-1).unflatten(0, (len(prompts), 2))
        value = (1 + kept + decimals @ torch.arange(10.0) / 10).clamp(max=5.0)
        found.append((share * value).sum(dim=1) / share.sum(dim=1))
        digits = zip(kept[:, 0].tolist(), decimals[:, 0].argmax(dim=1).tolist(), strict=True)
        written = [f"{1 + whole}.{tenth}" for whole, tenth in digits]
        openings = [f"{opening}{digits}\n" for opening, digits in zip(openings, written, strict=True)]
    return torch.stack(found, dim=1)


def test_equals_passes_over_everything(load, eight_bit):
    reward = load()
    expected = marks_by_whole_passes(reward, eight_bit, PROMPTS)
    found = torch.stack(list(reward.marks(eight_bit, PROMPTS).values()), dim=1)
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_features_of_another_image_are_noticed(load, eight_bit):
    reward = load()
    expected = marks_by_whole_passes(reward, eight_bit, PROMPTS)

    def rolled(module, args, output):
        for features in (output.pooler_output, *output.deepstack_features):
            features.copy_(features.unflatten(0, (len(eight_bit), -1)).roll(1, dims=0).flatten(0, 1))

    with reward.model.model.model.visual.register_forward_hook(rolled):
        found = torch.stack(list(reward.marks(eight_bit, PROMPTS).values()), dim=1)
    assert (found - expected).abs().max() > 1e-3
    other = torch.stack(list(reward.marks(eight_bit.roll(1, dims=0), PROMPTS).values()), dim=1)
    assert_close(found, other, rtol=0, atol=1e-5)


def test_each_image_is_encoded_once(load, eight_bit):
    reward = load()
    grids, lengths = [], []
    network = reward.model.model.model
    with (
        network.visual.register_forward_pre_hook(
            lambda _, args, kwargs: grids.append(len(kwargs["grid_thw"])), with_kwargs=True
        ),
        network.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
    ):
        reward(eight_bit, PROMPTS)
    assert grids == [3], "one pass of the tower, for three images"
    assert len(lengths) == 9
    assert max(lengths[1:]) < 40 < lengths[0], "what was read is not read again"


def test_without_words_or_with_others_it_raises(load, words, tmp_path):
    with pytest.raises(ValueError, match="words="):
        load(words=None)
    with pytest.raises(ValueError, match="aspect"):
        load(aspect="beauty")
    other = tmp_path / "a.py"
    other.write_text("problem = 'no place'")
    with pytest.raises(ValueError, match="prompt"):
        load(words=other)
    with pytest.raises(FileNotFoundError):
        load(words=tmp_path / "none.py")


def test_an_encoder_decoder_takes_one_opening(folders, images):
    from fk_reward.rewards.answer_model import load_answer_model

    model = load_answer_model(folders["blip2_t5"], torch_dtype=torch.float32)
    with pytest.raises(ValueError, match="one opening"):
        model(images[:2], ["a", "b"], opening=["x", "y"])
