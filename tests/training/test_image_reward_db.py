"""Pairs of one prompt from the ratings of ImageRewardDB."""

from __future__ import annotations

import logging

import pytest

from fk_reward.training import PreferenceDataError, load_preferences, read_preferences
from tests.training.pictures import noise
from tests.training.preference_rows import digest, ratings, simple


def test_image_reward_db(write_rows, caplog):
    path = write_rows(ratings(alignment=[5, 3, 3], fidelity=[1, 2, 6], overall=[4, 4, 7]))
    loaded = load_preferences(path, dimension="alignment")
    assert [simple(pair)[1:] for pair in loaded.items] == [
        ((digest(0), digest(1)), 2.0),
        ((digest(0), digest(2)), 2.0),
    ]
    assert (loaded.num_ties, loaded.num_rows) == (1, 3)
    fidelity = read_preferences(path, dimension="fidelity")
    assert [simple(pair)[1:] for pair in fidelity] == [
        ((digest(1), digest(0)), 1.0),
        ((digest(2), digest(0)), 5.0),
        ((digest(2), digest(1)), 4.0),
    ]
    with caplog.at_level(logging.INFO):
        assert len(read_preferences(path, dimension="overall")) == 2
    assert "2 pairs (0 of two prompts) with 1 prompts from 3 rows; 1 ties dropped, 0 bad rows skipped" in caplog.text


def test_images_of_different_prompts_are_not_compared(write_rows):
    rows = ratings(overall=[5, 3, 1])
    rows[2] |= {"prompt_id": "p2", "prompt": "a dog"}
    assert len(read_preferences(write_rows(rows), dimension="overall")) == 1


@pytest.mark.parametrize("dimension", [None, "safety"])
def test_ratings_need_a_dimension(write_rows, dimension):
    with pytest.raises(ValueError, match="alignment, fidelity, overall: choose a dimension"):
        read_preferences(write_rows(ratings(overall=[1, 2])), dimension=dimension)


def test_only_ties(write_rows):
    with pytest.raises(ValueError, match="No preferences are left: 1 pairs tie"):
        read_preferences(write_rows(ratings(overall=[2, 2])), dimension="overall")


def test_a_broken_image_is_told_once_and_not_for_each_pair(write_rows, image_folder):
    path = write_rows(ratings(overall=[1, 2, 3]))
    (image_folder / "img/1.png").write_bytes(b"broken")
    with pytest.raises(PreferenceDataError) as error:
        read_preferences(path, dimension="overall")
    assert [problem.origin for problem in error.value.problems] == [f"{path}:2"]
    assert len(read_preferences(path, dimension="overall", skip_bad_rows=True)) == 1


def test_one_picture_with_two_ratings_is_a_contradiction(write_rows, image_folder):
    noise(0).save(image_folder / "img/1.png")
    with pytest.raises(PreferenceDataError, match="data.txt:2 over .*data.txt:1: .*same picture with the same prompt"):
        read_preferences(write_rows(ratings(overall=[1, 2, 3])), dimension="overall")
