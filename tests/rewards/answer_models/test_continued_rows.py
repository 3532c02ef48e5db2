"""Rows that are read once and continued, against passes that read everything anew."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import continued_rows
from fk_reward.rewards.answer_model import load_answer_model
from fk_reward.rewards.continued_rows import ContinuedRows

DECODERS = ("llava", "llava_next", "qwen3_vl")
QUESTIONS = {"unequal": ["Is it a red cat?", "A dog?", "x"], "equal": ["a cat?", "a dog?", "a cow?"]}
OPENING = "It is:\n"


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, folders):
    return load_answer_model(folders[request.param], torch_dtype=torch.float32)


def ids(model, text):
    return torch.tensor(model.joined_ids([text], opening=OPENING)).expand(3, -1)


@pytest.fixture(params=[True, False], ids=["kept", "anew"])
def kept(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(continued_rows, "_can_be_shortened", lambda cache: False)
    return request.param


@pytest.mark.parametrize("lengths", QUESTIONS)
def test_the_next_token_is_that_of_a_whole_pass(decoder, images, kept, lengths):
    questions = QUESTIONS[lengths]

    def whole(opening):
        return decoder(images, questions, opening=opening)

    rows = decoder.read(images, questions, opening=OPENING)
    expected = whole(OPENING)
    assert expected.std(dim=0).max() > 1e-3, "the images differ"
    assert_close(rows.logits, expected, rtol=0, atol=1e-5)
    peeked = rows.peek(ids(decoder, "No"))
    assert_close(peeked, whole(f"{OPENING}No"), rtol=0, atol=1e-5)
    assert_close(rows.logits, expected, rtol=0, atol=1e-5)
    written = rows.write(ids(decoder, "Yes\n"))
    assert_close(written, whole(f"{OPENING}Yes\n"), rtol=0, atol=1e-5)
    assert (written - whole(f"{OPENING}No")).abs().max() > 1e-2
    again = torch.tensor(decoder.joined_ids(["No"], opening=f"{OPENING}Yes\n")).expand(3, -1)
    assert_close(rows.peek(again), whole(f"{OPENING}Yes\nNo"), rtol=0, atol=1e-5)


def test_each_row_has_its_own_words(decoder, images):
    rows = decoder.read(images, QUESTIONS["unequal"], opening=OPENING)
    words = ["Yes", "No!", "Yes"]
    spelled = [decoder.joined_ids([word], opening=OPENING)[0][:1] for word in words]
    openings = [OPENING + decoder.processor.tokenizer.decode(row) for row in spelled]
    expected = decoder(images, QUESTIONS["unequal"], opening=openings)
    assert_close(rows.write(torch.tensor(spelled)), expected, rtol=0, atol=1e-5)


def test_images_are_read_once(folders, images, kept):
    model = load_answer_model(folders["qwen3_vl"], torch_dtype=torch.float32)
    network, towers, lengths = model.model.model, [], []
    with (
        network.visual.register_forward_pre_hook(lambda *_: towers.append(1)),
        network.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
    ):
        rows = model.read(images, QUESTIONS["equal"], opening=OPENING)
        rows.peek(ids(model, "No"))
        rows.write(ids(model, "Yes"))
    new = [ids(model, word).shape[1] for word in ("No", "Yes")]
    assert len(towers) == (1 if kept else 3)
    assert lengths[1:] == (new if kept else [lengths[0] + count for count in new])


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_gradients_are_those_of_a_whole_pass(folders, images, kept, name):
    decoder = load_answer_model(folders[name], torch_dtype=torch.float32)

    def gradient(logits_of):
        pixels = images.clone().requires_grad_()
        logits_of(pixels).log_softmax(dim=-1)[:, :9].sum().backward()
        return pixels.grad

    def continued(pixels):
        rows = decoder.read(pixels, QUESTIONS["unequal"], opening=OPENING)
        rows.peek(ids(decoder, "No"))
        return rows.write(ids(decoder, "Yes"))

    expected = gradient(lambda pixels: decoder(pixels, QUESTIONS["unequal"], opening=f"{OPENING}Yes"))
    assert expected.abs().max() > 0
    assert_close(gradient(continued), expected, rtol=1e-3, atol=1e-6)


def test_positions_that_do_not_go_on_are_noticed(folders, images, monkeypatch):
    model = load_answer_model(folders["qwen3_vl"], torch_dtype=torch.float32)
    expected = model(images, QUESTIONS["equal"], opening=f"{OPENING}Yes")
    followed = ContinuedRows._followed_by

    def further_on(rows, ids):
        inputs = followed(rows, ids)
        return inputs | {"position_ids": inputs["position_ids"] + 3}

    monkeypatch.setattr(ContinuedRows, "_followed_by", further_on)
    found = model.read(images, QUESTIONS["equal"], opening=OPENING).write(ids(model, "Yes"))
    assert (found - expected).abs().max() > 1e-3


def test_windows_and_states_are_not_taken_for_whole_memories():
    from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig

    sliding = DynamicCache(config=Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention"] * 2))
    assert not continued_rows._can_be_shortened(sliding)
    assert continued_rows._can_be_shortened(DynamicCache(config=LlamaConfig(num_hidden_layers=2)))
    assert not continued_rows._can_be_shortened(None)
