"""Every ```python block of README and docs/ runs, in order, page by page, in an empty folder and without a network.

A block that needs a GPU or the hub has the comment `<!-- skip: reason -->` on the line before it.
"""

from __future__ import annotations

import pytest

from tests.repository.layout import documents
from tests.repository.snippets import read_snippets

PAGES = [page for page in documents() if read_snippets(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page, tmp_path, monkeypatch):
    snippets = read_snippets(page)
    skipped = [snippet for snippet in snippets if snippet.skip_reason is not None]
    if len(skipped) == len(snippets):
        pytest.skip(f"{page.name}: {len(skipped)} blocks: {'; '.join(snippet.skip_reason for snippet in skipped)}")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets:
        if snippet.skip_reason is None:
            snippet.run(names)


def test_most_blocks_run_and_the_others_say_why():
    snippets = [snippet for page in PAGES for snippet in read_snippets(page)]
    skipped = [snippet for snippet in snippets if snippet.skip_reason is not None]
    assert all(snippet.skip_reason.strip() for snippet in skipped)
    assert len(skipped) <= len(snippets) / 2, f"{len(skipped)} of {len(snippets)} blocks are skipped"


def test_readme_shows_code():
    assert documents()[0] in PAGES


def test_a_broken_block_fails_at_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```python\nx = 1\n```\n<!-- skip: needs a GPU -->\n```python\n1 / 0\n```\n\n```python\n\nx / 0\n```\n"
    )
    first, skipped, broken = read_snippets(page)
    assert (first.skip_reason, skipped.skip_reason, broken.skip_reason) == (None, "needs a GPU", None)
    names: dict[str, object] = {}
    first.run(names)
    with pytest.raises(ZeroDivisionError) as error:
        broken.run(names)
    assert error.traceback[-1].lineno + 1 == 13
