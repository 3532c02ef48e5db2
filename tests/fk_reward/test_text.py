"""Text of people: what is refused, and what becomes of the rest where it is shown or drawn."""

from __future__ import annotations

import ast
import io
import logging
import sys
import unicodedata
import warnings

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from fk_reward import text as text_module
from fk_reward.text import MISSING, as_plain_text, markdown_text, require_text, shortened, text_problem, visible
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files

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


DRAWN_HOSTILE = "a $_$ mug, $\\frac$, 猫, \x1b[31m, \ud83d, 50 % & #"


def _figure(text: str) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 10], [1, 10], label=text)
    axes.set(xlabel=text, ylabel=text, title=text, xscale="log")
    axes.legend(title=text)
    axes.annotate(text, (1, 1))
    figure.suptitle(text)
    figure.text(0.5, 0.5, text)
    return figure


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_hostile_text_is_drawn_everywhere_without_a_warning(kind):
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        file = io.BytesIO()
        as_plain_text(_figure(DRAWN_HOSTILE)).savefig(file, format=kind)
    if kind == "svg":
        drawn = file.getvalue().decode()
        assert drawn.count(f"a $_$ mug, $\\frac$, {MISSING}, \\x1b[31m, \\ud83d, 50 % &amp; #") == 8
        assert "10^{0}" not in drawn.replace("<!--", "").split("<dc:title>")[0].split('id="text_1"')[0]


def test_latex_is_off_where_the_settings_ask_for_it():
    with mpl.rc_context({"text.usetex": True}):
        figure = as_plain_text(_figure("50 % _ &"))
    assert not figure.axes[0].title.get_usetex()


def test_missing_characters_are_told_once(caplog):
    text_module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for text in ("猫", "犬が好き"):
            assert as_plain_text(_figure(text)).get_suptitle() == MISSING * len(text)
    assert len(caplog.records) == 1


def test_ticks_keep_their_powers_of_ten():
    figure = as_plain_text(_figure("a"))
    figure.canvas.draw()
    assert any("10^" in label.get_text() and label.get_parse_math() for label in figure.axes[0].get_xticklabels())


def test_every_figure_of_the_package_goes_through():
    for path in python_files(*LIBRARY_FOLDERS):
        source = (ROOT / path).read_text()
        makes = any(
            isinstance(node, ast.Call) and ast.unparse(node.func) in ("Figure", "plt.figure", "plt.subplots")
            for node in ast.walk(ast.parse(source))
        )
        assert not makes or "as_plain_text(" in source, f"{path} draws text that Matplotlib may read as mathematics"
