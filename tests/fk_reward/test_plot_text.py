"""Text in figures is what was typed."""

from __future__ import annotations

import ast
import io
import logging
import warnings

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from fk_reward import plot_text
from fk_reward.plot_text import MISSING, as_plain_text
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files

HOSTILE = "a $_$ mug, $\\frac$, 猫, \x1b[31m, \ud83d, 50 % & #"


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
        as_plain_text(_figure(HOSTILE)).savefig(file, format=kind)
    if kind == "svg":
        drawn = file.getvalue().decode()
        assert drawn.count(f"a $_$ mug, $\\frac$, {MISSING}, \\x1b[31m, \\ud83d, 50 % &amp; #") == 8
        assert "10^{0}" not in drawn.replace("<!--", "").split("<dc:title>")[0].split('id="text_1"')[0]


def test_latex_is_off_where_the_settings_ask_for_it():
    with mpl.rc_context({"text.usetex": True}):
        figure = as_plain_text(_figure("50 % _ &"))
    assert not figure.axes[0].title.get_usetex()


def test_missing_characters_are_told_once(caplog):
    plot_text._warn_once.cache_clear()
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
