"""Text in images: the score against its definition, and the recogniser with its real weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.ocr import OCRReward, RapidReader, edit_distance, target_text, text_score


def recursive_distance(first, second):
    """The definition, without a table."""

    @cache
    def at(i, j):
        if i == 0 or j == 0:
            return i + j
        same = first[i - 1] == second[j - 1]
        return min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (not same))

    return at(len(first), len(second))


WORDS = st.text("abc", max_size=7)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
def test_the_distance_is_that_of_its_definition(first, second):
    assert edit_distance(first, second) == recursive_distance(first, second)


def official_score(found, prompt):
    """As `flow_grpo/ocr.py` describes it, with the distance by its definition."""
    target = prompt.split('"')[1].replace(" ", "").lower()
    found = found.replace(" ", "").lower()
    distance = 0 if target in found else min(recursive_distance(found, target), len(target))
    return 1 - distance / len(target)


@settings(max_examples=150, deadline=None)
@given(st.text("ab B", max_size=9), st.text("ab B", min_size=1, max_size=6).filter(str.strip))
def test_the_score_is_the_official_one(found, target):
    prompt = f'a sign "{target}" on a wall'
    assert text_score(found, target_text(prompt)) == pytest.approx(official_score(found, prompt))


def test_it_is_between_zero_and_one_whatever_is_read():
    assert text_score("x" * 500, "short") == 0.0
    assert text_score("", "short") == 0.0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [('say "A b"', "A b"), ("say “Été”", "Été"), ('first "one" then "two"', "one"), ('curly “x” and "y"', "x")],
)
def test_the_first_quoted_text_counts(prompt, expected):
    assert target_text(prompt) == expected


@pytest.mark.parametrize("prompt", ["no quotes", '""', 'an unclosed "quote', '"  "', ""])
def test_a_prompt_without_quoted_text_raises(prompt):
    with pytest.raises(ValueError, match="in double quotes"):
        target_text(prompt)


def test_an_unknown_target_raises():
    with pytest.raises(ValueError, match="quoted"):
        OCRReward(object(), target="all")


def test_threads_go_with_the_own_reader_only():
    with pytest.raises(TypeError, match="num_threads"):
        load_reward("ocr", reader=object(), num_threads=1)


def test_the_card_says_where_the_weights_are():
    assert reward_card("ocr").weights == "in the package rapidocr"


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r"fk-reward\[ocr\]"):
        load_reward("ocr")


def written(text, *, size=(320, 96), fill=(20, 20, 20), ground=(240, 240, 235)):
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).text((14, 30), text, fill=fill, font=ImageFont.load_default(32))
    return image


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    return load_reward("ocr", num_threads=1)


def test_real_weights_read_what_is_written(reward):
    images = [written("Happy New Year"), written("Wet paint"), Image.new("RGB", (320, 96), "white")]
    scores = reward(images, 'a sign that says "Happy New Year"')
    assert scores[0] == 1.0
    assert scores[1] < 0.5
    assert scores[2] == 0.0


def test_colours_arrive_in_the_right_order(reward):
    """Text in blue on red is as legible as in red on blue; only a mixture of channels could tell them apart."""
    scores = reward([written("Bookshop", fill=(30, 30, 220), ground=(235, 200, 60))], 'a sign "Bookshop"')
    assert scores.tolist() == [1.0]


def test_real_weights_are_batch_invariant_and_take_tensors(reward):
    image = torch.from_numpy(np.array(written("Open daily"))).permute(2, 0, 1) / 255
    batch = torch.stack([image, 1 - image])
    together = reward(batch, '"Open daily"')
    alone = torch.cat([reward(one[None], '"Open daily"') for one in batch])
    assert torch.equal(together, alone)
    assert together.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (7, 900)])
def test_odd_sizes_are_read_in_reasonable_time(reward, size):
    assert reward([Image.new("RGB", size, "white")], '"a"').tolist() == [0.0]


def test_a_reader_gets_rgb_arrays():
    seen = []

    class Reader:
        def read(self, image):
            seen.append((image.dtype, image.shape, image[0, 0].tolist()))
            return ["a"]

    OCRReward(Reader())(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 4), '"a"')
    assert seen == [(np.uint8, (2, 4, 3), [255, 128, 0])]


def test_the_reader_is_made_once(reward):
    assert isinstance(reward.reader, RapidReader)
