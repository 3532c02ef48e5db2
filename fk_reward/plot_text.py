"""Text in figures: drawn as it was typed, never as mathematics, in characters that the font has."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import lru_cache

from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text

from fk_reward.user_text import visible

MISSING = "\N{REPLACEMENT CHARACTER}"
"""What is drawn for a character that the font lacks."""

logger = logging.getLogger(__name__)


def as_plain_text(figure: Figure) -> Figure:
    r"""Let every text of a figure be drawn as it was typed; call it when the figure is complete.

    Matplotlib reads `$...$` as mathematics and raises on what is none, hands everything to LaTeX where the user's
    settings say so, and warns once for each character that the font lacks. Here mathematics and LaTeX are off for the
    texts of the figure, control characters are written as escapes (but line breaks, which wrap titles), and missing
    characters become `MISSING`, with one warning for a font.

    The labels of ticks belong to their formatter, which writes powers of ten as mathematics, and are left alone.

    Args:
        figure: changed in place.

    Returns:
        The figure.

    Example:
        >>> figure = Figure()
        >>> title = figure.suptitle("a mug with a $_$ face and a \a")
        >>> as_plain_text(figure).get_suptitle()
        'a mug with a $_$ face and a \\x07'
    """
    labels = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    for text in set(figure.findobj(Text)) - labels:
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_text(_drawable(text.get_text(), text.get_fontproperties()))
    return figure


def _drawable(typed: str, properties: FontProperties) -> str:
    lines = "\n".join(visible(line) for line in typed.split("\n"))
    if lines.isascii():
        return lines
    fonts = [get_font(path) for path in _font_files(properties)]
    missing = {letter for letter in set(lines) - {"\n"} if not any(font.get_char_index(ord(letter)) for font in fonts)}
    if missing:
        _warn_once(", ".join(properties.get_family()))
    return "".join(MISSING if letter in missing else letter for letter in lines)


def _font_files(properties: FontProperties) -> list[str]:
    """The fonts that Matplotlib tries for a character: the first that is found for each family, else its default."""
    files = []
    for family in properties.get_family():
        wanted = properties.copy()
        wanted.set_family(family)
        with suppress(ValueError):  # that family is not installed
            files.append(str(fontManager.findfont(wanted, fallback_to_default=False)))
    return files or [str(fontManager.findfont(properties))]


@lru_cache
def _warn_once(family: str) -> None:
    logger.warning(
        "The font of the plots (%s) lacks characters of a prompt; they are drawn as %s. Add a font that has them, such "
        "as matplotlib.rcParams['font.family'] = ['DejaVu Sans', 'Noto Sans CJK JP'].",
        family,
        MISSING,
    )
