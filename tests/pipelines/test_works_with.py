"""What the README says that steering works with is what tests show."""

from __future__ import annotations

from tests.pipelines import works_with


def test_the_readme_is_up_to_date():
    page = works_with.README.read_text(encoding="utf-8")
    assert works_with.written(page) == page, f"stale: {works_with.BEGIN}"


def test_every_word_has_its_test():
    assert list(works_with.missing_tests()) == []


def test_a_word_without_a_test_is_noticed(monkeypatch):
    monkeypatch.setitem(works_with.EVIDENCE, "tasks", {"video": ("pipelines/test_families.py", "test_video")})
    assert list(works_with.missing_tests()) == ["pipelines/test_families.py::test_video"]
