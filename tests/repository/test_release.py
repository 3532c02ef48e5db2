"""Releases: version, changelog and citation agree, packages are small, and the files that people look for are there."""

from __future__ import annotations

import pytest
import yaml

from scripts.check_release import LARGEST, package_mistakes, release_mistakes
from tests.repository.layout import ROOT, setup_config


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "fk_reward").mkdir()
    (tmp_path / "fk_reward" / "version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2030-01-31\n\n## [1.2.2] - 2029-01-01\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    return tmp_path


def test_a_good_tag(checkout):
    assert release_mistakes("v1.2.3", checkout) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("fk_reward/version.py", '__version__ = "1.2.4"', "version.py says 1.2.4"),
        ("CHANGELOG.md", "## [1.2.3] - unreleased", "and a date"),
        ("CHANGELOG.md", "## [1.2.2] - 2030-01-31", "and a date"),
        ("CITATION.cff", "cff-version: 1.2.0", "CITATION.cff says nothing"),
    ],
)
def test_what_disagrees_is_named(checkout, name, text, said):
    (checkout / name).write_text(text)
    (mistake,) = release_mistakes("v1.2.3", checkout)
    assert said in mistake


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "vnext", "v1.2.3.dev1"])
def test_other_tags(checkout, tag):
    assert "is no tag of a release" in release_mistakes(tag, checkout)[0]


def test_packages(tmp_path):
    (tmp_path / "fk_reward-1.2.3-py3-none-any.whl").write_bytes(b"wheel")
    assert package_mistakes("1.2.3", tmp_path) == [f"{tmp_path} has 0 .tar.gz files."]
    with (tmp_path / "fk_reward-1.2.2.tar.gz").open("wb") as file:
        file.truncate(LARGEST + 1)
    wrong_version, too_large = package_mistakes("1.2.3", tmp_path)
    assert "is not of version 1.2.3" in wrong_version and "MB" in too_large


def test_the_citation_is_of_this_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "authors", "message"} <= set(citation)
    assert citation["license"] == setup_config()["metadata"]["license"]
    assert f'"{citation["version"]}"' in (ROOT / "fk_reward" / "version.py").read_text()


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_are_forms(form):
    content = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert content == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(content)
    assert all({"type", "attributes"} <= set(part) for part in content["body"])
    names = [part["id"] for part in content["body"]]
    assert len(names) == len(set(names))


def test_the_release_asks_this_script():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert sum("scripts/check_release.py" in step for step in steps) == 2
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}


def test_the_security_policy_says_where_to_report():
    text = (ROOT / "SECURITY.md").read_text()
    assert "Report a vulnerability" in text and "weights_only=True" in text
