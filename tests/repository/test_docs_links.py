"""Links between the pages: files and headings that they point at are there; every page is in the site's navigation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import unicodedata

import pytest

from tests.repository.layout import ROOT, documents

PAGES = [*documents(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
LINK = re.compile(r"(?<!\\)!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")
GENERATED = ("reference/",)
"""Pages that are written when the site is built."""


def without_code(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def slug(heading):
    """The address of a heading, as code hosts make it."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    kept = (letter for letter in text if letter in "-_ " or unicodedata.category(letter)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def anchors(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = [slug(heading) for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)]
    numbered = [f"{name}-{i}" for name in set(found) for i in range(1, found.count(name))]
    return {*found, *numbered, *re.findall(r'<a (?:id|name)="([^"]+)"', text)}


def broken_links(page):
    """Links of a page to files or headings that are not there."""
    mistakes = []
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page if not path else (page.parent / path).resolve()
        if not file.exists():
            mistakes.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            mistakes.append(f"{target}: no such heading")
    return mistakes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# One `two`: three\n\n## Same\n\n## Same\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#one-two-three) [b](#here) [c](other.md#same-1) [d](https://nowhere.example/#x)\n"
        "[e](none.md) [f](other.md#none) [g](#none) `[h](none)`\n```\n[i](none)\n```\n"
    )
    assert broken_links(page) == [
        "none.md: no such file",
        "other.md#none: no such heading",
        "#none: no such heading",
    ]


def listed(page):
    """Pages of the tables of contents of a page, as paths without an end."""
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]


def test_every_page_is_in_the_navigation_once():
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).with_suffix("").as_posix() for page in documents() if docs in page.parents}
    found = [name for name in listed(docs / "index.md") if not name.startswith(GENERATED)]
    assert sorted(found) == sorted(pages - {"index"})


def test_no_page_has_a_name_that_sphinx_writes_over():
    """The site's own search is search.html: a page of that name was there, in the navigation, and could not be read."""
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} & {
        "search",
        "genindex",
        "modindex",
        "py-modindex",
    } == set()


def test_the_reference_has_every_public_name(tmp_path):
    import importlib

    from scripts.write_reference import PACKAGES, write_reference
    from tests.repository.test_docs_coverage import DOCUMENTED_PACKAGES

    assert set(DOCUMENTED_PACKAGES) <= set(PACKAGES)
    index, *pages = write_reference(tmp_path)
    assert listed(index) == [page.stem for page in pages]
    for name, page in zip(PACKAGES, pages, strict=True):
        text = page.read_text()
        for public in set(importlib.import_module(name).__all__) - {"__version__"}:
            assert f"## `{public}`" in text and f":: {name}.{public}\n" in text, f"{name}.{public}"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
    pytest.importorskip("myst_parser", reason="pip install -e '.[docs]'")
    pytest.importorskip("furo", reason="pip install -e '.[docs]'")
    source = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("reference"))
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    line = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", str(source), str(tmp_path / "site")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    site = tmp_path / "site"
    assert (site / "searchindex.js").exists() and (site / "search.html").exists()
    assert "FKSteeringPipeline" in (site / "reference" / "fk_reward.html").read_text()
    foreign = {
        address
        for page in site.rglob("*.html")
        for address in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
    }
    assert foreign == set(), "the site loads nothing from elsewhere"
