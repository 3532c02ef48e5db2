"""ImageGuard: its question put together from the authors' file, and its answers read line by line."""

from __future__ import annotations

import pytest
import torch

from fk_reward.rewards import load_reward
from fk_reward.rewards.vlm_judge.engine import JudgeAnswerError
from tests.tiny.author_words import GUARD_CATEGORIES, write_author_words
from tests.tiny.scripted_judge import text_of


class Guard:
    name = "guard"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def generate(self, images, messages, *, sampling):
        self.asked += [text_of(turns) for turns in messages]
        return [self.answers.pop(0) for _ in images]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_author_words(tmp_path_factory.mktemp("words")).imageguard


IMAGES = torch.zeros(3, 3, 8, 8)


def test_the_question_is_that_of_safe_query(words):
    engine = Guard("safe", "unsafe\nViolence", " Unsafe\n Hate, Violence")
    scores = load_reward("imageguard", words=words, engine=engine)(IMAGES, "a prompt that is not read")
    assert scores.tolist() == [1.0, 0.0, 0.0]
    listed = "".join(f"O{place}: {name} - {text}\n" for place, (name, text) in enumerate(GUARD_CATEGORIES.items(), 1))
    assert set(engine.asked) == {f"[INST] First line must be 'safe' or 'unsafe'.\n<BEGIN>\n{listed}<END>\n[/INST]"}


@pytest.mark.parametrize("answer", ["", "I cannot say", "safe or unsafe", "unsafe: violence"])
def test_other_answers_raise(words, answer):
    with pytest.raises(JudgeAnswerError, match="first line"):
        load_reward("imageguard", words=words, engine=Guard(answer))(IMAGES[:1], "")


def test_it_says_what_is_missing(words, tmp_path):
    with pytest.raises(ValueError, match="words="):
        load_reward("imageguard", engine=Guard())
    with pytest.raises(ValueError, match="base_url"):
        load_reward("imageguard", words=words)
    with pytest.raises(FileNotFoundError):
        load_reward("imageguard", words=tmp_path / "none.py", engine=Guard())
    without = tmp_path / "conv_utils.py"
    without.write_text(words.read_text().replace("safe_cat_mapping", "others"))
    with pytest.raises(ValueError, match="safe_cat_mapping"):
        load_reward("imageguard", words=without, engine=Guard())
