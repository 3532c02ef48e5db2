"""Batches: the chosen rows before the rejected ones, in the same order."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from fk_reward.training import (
    ImageSource,
    LabelledImage,
    PreferenceDataset,
    PreferencePair,
    collate_preferences,
)
from tests.training.pictures import noise

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
        expected = ImageSource(noise(seed, SIZES[seed % 10])).load()
        torch.testing.assert_close(batch["images"][place], expected, rtol=0, atol=0)
    torch.testing.assert_close(batch["margin"], torch.tensor([2.0, 0.0, 0.5]))


def test_no_margin_at_all():
    assert collate_preferences([PreferenceDataset(pairs((None, None)))[0]])["margin"] is None


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
        data[0]


def test_kinds_are_told_apart():
    labelled = [LabelledImage(prompt="", image=ImageSource(noise(0)), label=True)]
    assert PreferenceDataset(labelled).is_labelled and not PreferenceDataset(pairs()).is_labelled
    for mixed in ([*pairs(), *labelled], ["a row"]):
        with pytest.raises(TypeError, match="all PreferencePair or all LabelledImage"):
            PreferenceDataset(mixed)


def test_nothing():
    with pytest.raises(ValueError, match="at least one record"):
        PreferenceDataset([])
    with pytest.raises(ValueError, match="no rows"):
        collate_preferences([])
