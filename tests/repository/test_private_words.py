"""No file that is published names a folder of one machine or a thing that only its authors know.

The patterns bracket one letter of each word, so that this file does not contain them.
"""

from __future__ import annotations

import re

import pytest

from tests.repository.layout import ROOT, tracked_files

PATTERNS = (
    r"(?<![\w.:/])/(?:wor[k]|roo[t]|tm[p]|hom[e]|op[t]|mn[t]|User[s])/\w",
    r"\.\./share[d]/",
    r"\bshare[d]/\w+\.md",
    r"\bshape[s]-recipe",
    r"\bDESIG[N]\b|\bSTYL[E]\.md",
    r"\bfounde[r]s?\b",
    r"\bworkplac[e]",
    r"\bissu[e] \d|\bissue[s] show",
    r"\bpyen[v]\b",
    r"\b(?:HELPE[R]|BENC[H]|REP[O]) (?:part|session)|\bhelpe[r] [A-Z]{3,}",
    r"\bclaud[e]\b|\banthropi[c]\b|\bchatgp[t]\b",
)
WORDS = re.compile("|".join(PATTERNS), re.IGNORECASE)
BINARY = {".safetensors", ".png", ".jpg", ".npz", ".ico"}


def private_words(text: str) -> list[str]:
    """Every match, with its line."""
    return [f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]}" for match in WORDS.finditer(text)]


def test_no_tracked_file_has_private_words():
    texts = [path for path in tracked_files() if path.suffix not in BINARY]
    found = {str(path): words for path in texts if (words := private_words((ROOT / path).read_text(encoding="utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    "parts",
    [
        ("see /wo", "rk/main"),
        ("open('/t", "mp/x')"),
        ("../sha", "red/x"),
        ("the foun", "der says"),
        ("DES", "IGN section 2"),
        ("part of iss", "ue 2"),
        ("~/.pye", "nv"),
    ],
)
def test_private_words_are_noticed(parts):
    assert private_words("fine\n" + "".join(parts)) != []


@pytest.mark.parametrize(
    "text", ["https://x.org/work/shop", "framework/main", "shared backbone", "issues on GitHub", "designed"]
)
def test_ordinary_words_pass(text):
    assert private_words(text) == []
