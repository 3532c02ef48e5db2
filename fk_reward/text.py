"""Text from users: what is refused, and how the rest is shown as it was typed.

A prompt may hold anything that a string can: half of an emoji, colour codes of a terminal, `$` and `[bold]`, which
other programs read as commands. Text that cannot be encoded is refused on input (`text_problem`, `require_text`). The
rest is kept, and escaped for its destination on output: `visible` for a line of a terminal or a log
(`fk_reward/terminal.py`), `markdown_text` for Markdown, `as_plain_text` for figures.
"""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

logger = logging.getLogger(__name__)

MISSING = "\N{REPLACEMENT CHARACTER}"
"""What is drawn for a character that the font lacks."""

_SURROGATE = re.compile("[\ud800-\udfff]")

# Unicode's embeddings, overrides and isolates change the order of the text that follows them, also outside the prompt.
# Marks and joiners (U+200C to U+200F) are left alone: Persian, Hindi, Arabic and emoji are written with them.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, surrogates, separators of lines and paragraphs

# In Markdown: code, emphasis, links, HTML, cells, strikethrough, GitHub's mathematics. An underscore inside a word is
# only a letter, and a bracket only begins a link where a round one follows.
_MARKDOWN = re.compile(r"[\\`*|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(|^(?:#|>|[-+](?= ))")


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "±": "$\\pm$",
    "−": "$-$",
    "λ": "$\\lambda$",
    "→": "$\\to$",
    "·": "$\\cdot$",
}


def text_problem(text: str) -> str | None:
    r"""Say why a string cannot be encoded; None if it can.

    A lone surrogate, half of a character outside the 16-bit plane, is legal in a Python string and in JSON but in no
    encoding: tokenizers, files and terminals refuse it, each with an error of its own.

    Example:
        >>> text_problem("a \ud83d square")
        "'\\ud83d' at place 2 is half of a character (a lone surrogate), which nothing can encode"
        >>> text_problem("a 😀 square") is None
        True
    """
    found = _SURROGATE.search(text)
    if found is None:
        return None
    place = f"{ascii(found[0])} at place {found.start()}"
    return f"{place} is half of a character (a lone surrogate), which nothing can encode"


def require_text(texts: Iterable[str], name: str) -> None:
    r"""Raise for strings that cannot be encoded, before anything is made of them.

    Args:
        texts: strings.
        name: what they are called in the message.

    Raises:
        ValueError: for the first one with a lone surrogate; it names the place.

    Example:
        >>> require_text(["a star", "a \udc00 star"], "prompts")
        Traceback (most recent call last):
        ValueError: prompts[1]: '\udc00' at place 2 is half of a character (a lone surrogate), which nothing can encode
    """
    for index, text in enumerate(texts):
        if (problem := text_problem(text)) is not None:
            raise ValueError(f"{name}[{index}]: {problem}")


def visible(text: str) -> str:
    r"""Write a text in one line, every character that acts instead of being seen as its escape.

    These are control characters (line breaks, colour codes, bells, deletions), characters that reverse the direction of
    the text, and lone surrogates. Everything else stays as it is.

    Example:
        >>> print(visible("a \x1b[31mred\x1b[0m\ncat, 猫, 😀"))
        a \x1b[31mred\x1b[0m\ncat, 猫, 😀
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) if _acts(letter) else letter for letter in text)


def markdown_text(text: str) -> str:
    r"""The text in one line of Markdown that reads as it was typed, also in a cell of a table.

    Example:
        >>> print(markdown_text("0.7*a + 0.3*b of [x](y) | <b>"))
        0.7\*a + 0.3\*b of [x]\(y) \| \<b>
    """
    return _MARKDOWN.sub(lambda found: "\\" + found[0], visible(text))


def latex_text(text: str) -> str:
    r"""The text in one line of LaTeX that reads as it was typed.

    Example:
        >>> print(latex_text("0.7*a_b + 50 % of {x} \\ ~"))
        0.7*a\_b + 50 \% of \{x\} \textbackslash{} \textasciitilde{}
    """
    return "".join(_LATEX.get(letter, letter) for letter in visible(text))


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and "..." where it is longer than `length` characters.

    Example:
        >>> shortened("a red square", 8)
        'a red...'
    """
    return text if len(text) <= length else text[: length - 3] + "..."


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3, show: Callable[[str], str] = repr) -> str:
    """Suggest the names that look most like a misspelt one, as a sentence to append to another.

    Args:
        name: as it was typed.
        known: valid names.
        limit: at most so many suggestions.
        show: how to write each of them.

    Returns:
        The sentence, with a space in front; empty if nothing comes close.

    Example:
        >>> did_you_mean("ddim100", ["ddim-100", "lcm-4"])
        " Did you mean 'ddim-100'?"
        >>> did_you_mean("euler", ["ddim-100", "lcm-4"])
        ''
    """
    close = difflib.get_close_matches(name, list(known), n=limit)
    return f" Did you mean {', '.join(map(show, close))}?" if close else ""


def as_plain_text(figure: Figure) -> Figure:
    r"""Draw every text of a figure as it was typed; call this when the figure is complete.

    Matplotlib parses `$...$` as mathematics and raises where that fails, passes everything to LaTeX if the user's
    settings say so, and warns once for each character that the font lacks. This turns mathematics and LaTeX off for the
    texts of the figure, escapes control characters (but line breaks, which wrap titles), and replaces missing
    characters by `MISSING`, with one warning per font.

    Tick labels belong to their formatter, which writes powers of ten as mathematics, and stay as they are.

    Args:
        figure: changed in place.

    Returns:
        The figure.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure = Figure()
        >>> title = figure.suptitle("a mug with a $_$ face and a \a")
        >>> as_plain_text(figure).get_suptitle()
        'a mug with a $_$ face and a \\x07'
    """
    from matplotlib.axis import Tick  # imported here: every command imports this module, and few draw
    from matplotlib.text import Text

    labels = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    for text in set(figure.findobj(Text)) - labels:
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_text(_drawable(text.get_text(), text.get_fontproperties()))
    return figure


def _acts(letter: str) -> bool:
    return letter in _REORDERING or unicodedata.category(letter) in _HIDDEN_CATEGORIES


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _drawable(typed: str, properties: FontProperties) -> str:
    lines = "\n".join(visible(line) for line in typed.split("\n"))
    if lines.isascii():
        return lines
    from matplotlib.font_manager import get_font

    fonts = [get_font(path) for path in _font_files(properties)]
    missing = {letter for letter in set(lines) - {"\n"} if not any(font.get_char_index(ord(letter)) for font in fonts)}
    if missing:
        _warn_once(", ".join(properties.get_family()))
    return "".join(MISSING if letter in missing else letter for letter in lines)


def _font_files(properties: FontProperties) -> list[str]:
    """The fonts that Matplotlib tries for a character: the first that is found for each family, else its default."""
    from matplotlib.font_manager import fontManager

    files = []
    for family in properties.get_family():
        wanted = properties.copy()
        wanted.set_family(family)
        with suppress(ValueError):  # that family is not installed
            files.append(str(fontManager.findfont(wanted, fallback_to_default=False)))
    return files or [str(fontManager.findfont(properties))]


@lru_cache  # a figure has many texts of one font
def _warn_once(family: str) -> None:
    logger.warning(
        "The font of the plots (%s) lacks characters of a prompt; they are drawn as %s. Add a font that has them, such "
        "as matplotlib.rcParams['font.family'] = ['DejaVu Sans', 'Noto Sans CJK JP'].",
        family,
        MISSING,
    )
