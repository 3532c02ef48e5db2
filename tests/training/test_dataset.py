"""Batches with the chosen rows before the rejected ones, and splits without a prompt on both sides."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fk_reward.training import (
    ImageSource,
    LabelledImage,
    PreferenceDataset,
    PreferencePair,
    collate_preferences,
    split_by_prompt,
)
from tests.tiny.image_files import noise

SIZES = [(12, 8), (5, 9), (12, 8)]


def pairs(margins=(2.0, None, 0.5)):
    return [
        PreferencePair(
            prompt=f"prompt {i}",
            chosen=ImageSource(noise(i, SIZES[i])),
            rejected=ImageSource(noise(10 + i, SIZES[i])),
            rejected_prompt="other" if i == 1 else None,
            margin=margin,
        )
        for i, margin in enumerate(margins)
    ]


def test_a_batch_of_pairs():
    batch = collate_preferences([PreferenceDataset(pairs())[i] for i in range(3)])
    assert set(batch) == {"images", "prompts", "margin"}
    assert batch["prompts"] == ["prompt 0", "prompt 1", "prompt 2", "prompt 0", "other", "prompt 2"]
    for place, seed in enumerate((0, 1, 2, 10, 11, 12)):
        expected = ImageSource(noise(seed, SIZES[seed % 10])).load(keep_uint8=True)
        torch.testing.assert_close(batch["images"][place], expected, rtol=0, atol=0)
    torch.testing.assert_close(batch["margin"], torch.tensor([2.0, 0.0, 0.5]))


def test_no_margin_at_all():
    assert collate_preferences(pairs((None, None)))["margin"] is None


def test_a_batch_of_labels():
    items = [LabelledImage(prompt=str(i), image=ImageSource(noise(i)), label=i == 1) for i in range(3)]
    batch = collate_preferences([PreferenceDataset(items)[i] for i in range(3)])
    assert set(batch) == {"images", "prompts", "labels"}
    assert batch["prompts"] == ["0", "1", "2"] and len(batch["images"]) == 3
    torch.testing.assert_close(batch["labels"], torch.tensor([0.0, 1.0, 0.0]))


def test_through_a_loader():
    loader = DataLoader(PreferenceDataset(pairs()), batch_size=2, collate_fn=collate_preferences)
    assert [len(batch["images"]) for batch in loader] == [4, 2]


def test_paths_are_decoded_late(tmp_path):
    noise(0).save(tmp_path / "a.png")
    data = PreferenceDataset([LabelledImage(prompt="", image=ImageSource(tmp_path / "a.png"), label=True)])
    assert len(pickle.dumps(data)) < 2000
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="no such image file"):
        collate_preferences([data[0]])


def test_kinds_are_told_apart():
    labelled = [LabelledImage(prompt="", image=ImageSource(noise(0)), label=True)]
    assert PreferenceDataset(labelled).is_labelled and not PreferenceDataset(pairs()).is_labelled
    for mixed in ([*pairs(), *labelled], ["a row"]):
        with pytest.raises(TypeError, match="all PreferencePair or all LabelledImage"):
            PreferenceDataset(mixed)


def test_nothing():
    with pytest.raises(ValueError, match="at least one record"):
        PreferenceDataset([])
    with pytest.raises(ValueError, match="no records"):
        collate_preferences([])


IMAGE = ImageSource(Path("a.png"))


def pair(first, second=None):
    return PreferencePair(prompt=first, chosen=IMAGE, rejected=IMAGE, rejected_prompt=second)


def shuffle(items, seed):
    return [items[place] for place in np.random.default_rng(seed).permutation(len(items))]


def prompts(items):
    return {" ".join(prompt.lower().split()) for item in items for prompt in item.prompts}


def check_no_prompt_on_both_sides(split_fn, items, fraction, seed):
    train, validation = split_fn(items, fraction=fraction, seed=seed)
    assert prompts(train) & prompts(validation) == set()
    assert train and validation
    assert sorted(map(id, [*train, *validation])) == sorted(map(id, items))


words = st.sampled_from("abcdefghijkl")
some_pairs = st.lists(st.tuples(words, st.none() | words), min_size=2, max_size=30)


@settings(max_examples=30, deadline=None)
@given(some_pairs, st.floats(0.05, 0.95), st.integers(0, 5))
def test_no_prompt_is_on_both_sides(texts, fraction, seed):
    items = [pair(*text) for text in texts]
    try:
        split_by_prompt(items, fraction=fraction, seed=seed)
    except ValueError as error:
        assert "one group of prompts" in str(error)  # noqa: PT017
    else:
        check_no_prompt_on_both_sides(split_by_prompt, items, fraction, seed)


def by_row(items, *, fraction, seed):
    shuffled = shuffle(items, seed)
    num = round(fraction * len(items))
    return shuffled[num:], shuffled[:num]


def by_first_prompt(items, *, fraction, seed):
    names = sorted({item.prompt for item in items})
    held_out = set(names[: max(1, round(fraction * len(names)))])
    return [i for i in items if i.prompt not in held_out], [i for i in items if i.prompt in held_out]


@pytest.mark.parametrize("saboteur", [by_row, by_first_prompt])
def test_wrong_splits_are_noticed(saboteur):
    items = [pair(*text) for text in ("ab", "bc", "cd", "de", "fa")] * 3
    with pytest.raises(AssertionError):
        check_no_prompt_on_both_sides(saboteur, [*items, pair("x"), pair("y")], 0.5, 0)


def test_the_order_does_not_matter_and_is_kept():
    items = [pair(f"prompt {i % 20}") for i in range(60)]
    shuffled = shuffle(items, 3)
    train, validation = split_by_prompt(items, fraction=0.3, seed=1)
    again = split_by_prompt(shuffled, fraction=0.3, seed=1)
    assert [set(map(id, side)) for side in again] == [set(map(id, train)), set(map(id, validation))]
    assert train == [item for item in items if item in train]
    assert len(validation) == 18


def test_another_seed_is_another_split():
    items = [pair(f"prompt {i}") for i in range(40)]
    assert prompts(split_by_prompt(items, fraction=0.5, seed=0)[1]) != prompts(
        split_by_prompt(items, fraction=0.5, seed=1)[1]
    )


def test_case_and_spaces_do_not_make_another_prompt():
    items = [pair("A cat "), pair("a  CAT"), pair("dog"), pair("bird")]
    for seed in range(5):
        check_no_prompt_on_both_sides(split_by_prompt, items, 0.5, seed)


def test_a_group_larger_than_the_share_is_taken_only_if_nothing_else_fits():
    items = [pair("a")] * 5 + [pair("b")] * 4
    assert prompts(split_by_prompt(items, fraction=0.1, seed=0)[1]) == {"b"}


def test_images_without_prompt_go_by_the_image(tmp_path):
    images = [ImageSource(noise(seed % 3)) for seed in range(6)]
    for seed in range(3):
        noise(seed).save(tmp_path / f"{seed}.png")
    images += [ImageSource(tmp_path / f"{seed}.png") for seed in (0, 0, 1, 1, 2, 2)]
    items = [LabelledImage(prompt="", image=image, label=True) for image in images]
    train, validation = split_by_prompt(items, fraction=0.5, seed=0)
    assert len(train) == len(validation) == 6
    keys = [{str(item.image) + item.image.digest() for item in side} for side in (train, validation)]
    assert keys[0] & keys[1] == set()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_wrong_fractions(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split_by_prompt([pair("a"), pair("b")], fraction=fraction, seed=0)


@pytest.mark.parametrize("items", [[], [pair("a")] * 4, [pair("a", "b"), pair("b", "c")]])
def test_what_cannot_be_split(items):
    with pytest.raises(ValueError, match="one group of prompts"):
        split_by_prompt(items, fraction=0.5, seed=0)
