"""Text of users: what is refused, and what becomes of the rest where it is shown."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fk_reward.user_text import markdown_text, require_text, shortened, text_problem, visible

ANY_TEXT = st.text(st.characters(), max_size=40)  # surrogates too
HOSTILE = (
    "\\ ` *a* **b** _c_ __d__ [x](http://y) <b>bold</b> <!-- --> &amp; &#65; | ~~e~~ $x_1$ ![i](j) # h <http://a.b> a_b"
)


@given(ANY_TEXT)
def test_a_problem_is_found_exactly_where_a_string_cannot_be_encoded(text):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = text_problem(text)
        assert problem is not None and f"at place {error.start}" in problem
        problem.encode()
    else:
        assert text_problem(text) is None


def test_a_prompt_is_named_by_its_place():
    with pytest.raises(ValueError, match=r"prompts\[1\]: '\\ud83d' at place 2"):
        require_text(["a star", "a \ud83d star"], "prompts")


@given(ANY_TEXT)
def test_what_is_visible_is_one_line_of_plain_text(text):
    shown = visible(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(letter) for letter in shown} & {"RLO", "LRO", "RLE", "LRE", "RLI", "LRI"}


def test_every_other_character_stays():
    kept = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "LMNPS"]
    assert visible("".join(kept)) == "".join(kept)
    assert visible("خانه\u200cها 👩\u200d🎨") == "خانه\u200cها 👩\u200d🎨"  # joiners are part of words and of emoji


def _read(markdown: str) -> tuple[str, set[str]]:
    """The text that a reader of Markdown sees, and the kinds of inline elements that it found besides text."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    inline = [token for token in parser.parse(f"| a |\n| - |\n| {markdown} |\n") if token.type == "inline"][1:]
    children = [child for token in inline for child in token.children]
    return "".join(child.content for child in children), {child.type for child in children}


@pytest.mark.parametrize("text", [HOSTILE, *HOSTILE.split(" "), "0.7*a + 0.3*b", "clip [0.1, 0.2]", "a\nb", "\x1b[31m"])
def test_markdown_shows_it_as_it_was_typed(text):
    seen, kinds = _read(markdown_text(text))
    assert seen == visible(text)
    assert kinds <= {"text", "text_special"}


def test_the_ends_of_intervals_need_no_escape():
    assert markdown_text("0.50 [0.41, 0.59], p < 0.05, a_b") == "0.50 [0.41, 0.59], p < 0.05, a_b"


def test_long_text_is_cut():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abc..."
