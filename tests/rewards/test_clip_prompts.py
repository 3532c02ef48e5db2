"""How CLIP's prompts are read, where transformers and the original code differ."""

from __future__ import annotations

import pytest

from tests.tiny.tokenizers import make_clip_tokenizer


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
