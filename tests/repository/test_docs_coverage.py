"""Every public name, every name that a person types and every setting is told about in README or docs/."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

import fk_reward
from fk_reward import BatchSizes, FKSteeringConfig
from tests.repository.layout import ROOT, documents

DOCUMENTED_PACKAGES = (
    "fk_reward",
    "fk_reward.pipelines",
    "fk_reward.planning",
    "fk_reward.rewards",
    "fk_reward.rewards.doctor",
    "fk_reward.rewards.llava_reward",
    "fk_reward.rewards.vlm_judge",
    "fk_reward.rewards.workers",
    "fk_reward.search",
    "fk_reward.training",
    "fk_reward.training.skills",
)
SOURCE_PATH = r"`((?:fk_reward|pipelines|rewards|training|tests|scripts|examples)/[\w/]+(?:\.py|/))`"
TABLES = (
    "fk_reward.smc.resampling:RESAMPLERS",
    "fk_reward.smc.potentials:POTENTIALS",
    "fk_reward.rewards.registry:REWARDS",
    "fk_reward.rewards.doctor:PROBES",
    "fk_reward.pipelines.decoding:PREVIEWS",
    "fk_reward.pipelines.schedulers:SOLVERS",
    "fk_reward.search:SEARCHES",
)


@pytest.fixture(scope="module")
def prose() -> str:
    """The text of all documents but the list of papers, which explains no interface."""
    return "\n".join(page.read_text() for page in documents() if page.name != "papers.md")


def undocumented(names: list[str], prose: str) -> list[str]:
    """Names that never stand inside code, in backticks or in a block."""
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", prose, flags=re.DOTALL))
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)]


@pytest.mark.parametrize("package", DOCUMENTED_PACKAGES)
def test_exports_are_documented(package, prose):
    assert undocumented(list(importlib.import_module(package).__all__), prose) == []


@pytest.mark.parametrize("table", TABLES)
def test_names_that_a_person_types_are_documented(table, prose):
    module, attribute = table.split(":")
    assert undocumented(list(getattr(importlib.import_module(module), attribute)), prose) == []


@pytest.mark.parametrize("settings", [FKSteeringConfig, BatchSizes])
def test_settings_are_documented(settings, prose):
    assert undocumented([field.name for field in dataclasses.fields(settings)], prose) == []


def test_a_name_outside_code_does_not_count():
    prose = "steer gently with `steering` and\n```python\nload_reward('clipscore')\n```"
    assert undocumented(["steer", "load_reward", "clip"], prose) == ["steer", "clip"]


def test_methods_name_their_paper():
    papers = (ROOT / "docs" / "papers.md").read_text()
    for source in ("2501.06848", "2507.21391", "Chopin", "GenEval", "CLIPScore"):
        assert source in papers


def test_documents_name_files_that_exist():
    pages = [*documents(), ROOT / "CONTRIBUTING.md"]
    paths = {path for page in pages for path in re.findall(SOURCE_PATH, page.read_text())}
    assert paths
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_readme_says_how_to_try_and_test():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_changelog_has_this_version():
    assert f"## [{fk_reward.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


SEARCH_PAGE = (ROOT / "docs" / "searches.md").read_text(encoding="utf-8")
SEARCH_ROWS = [line for line in SEARCH_PAGE.split("\n## ")[0].splitlines() if line.startswith("| `")]


def test_the_page_of_searches_begins_with_whom_each_is_for():
    head = SEARCH_PAGE.split("\n## ")[0]
    assert len(re.findall(r"^\d+\. \*\*", head, flags=re.MULTILINE)) == 10
    names = {name for row in SEARCH_ROWS for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    presets = {f"recommended-{name}" for name in ("one", "branching", "several", "constraint")}  # in their own section
    assert names == set(importlib.import_module("fk_reward.search").SEARCHES) - presets


@pytest.mark.parametrize("row", SEARCH_ROWS[1:], ids=lambda row: row.split("`")[1])
def test_each_search_states_source_cost_and_law(row):
    (anchor,) = re.findall(r"\(#([\w-]+)\)", row)
    headings = {
        title.lower().replace(" ", "-"): text
        for title, _, text in (part.partition("\n") for part in SEARCH_PAGE.split("\n## ")[1:])
    }
    for fact in ("Source", "Cost", "Law"):
        assert len(re.findall(rf"^- \*\*{fact}\*\*: .+", headings[anchor], flags=re.MULTILINE)) == 1, fact
