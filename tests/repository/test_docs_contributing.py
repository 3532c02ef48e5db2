"""The diffs of CONTRIBUTING.md apply to the code as it is, and what they add can be used."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch

from scripts.house import module_name
from tests.repository.layout import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
SECTION = re.compile(r"^## (?P<heading>.+)\n(?P<body>(?:(?!## ).*\n)*)", re.MULTILINE)
FENCE = re.compile(r"^```diff\n(?P<diff>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class FileDiff:
    """What a diff does to one file: `hunks` are pairs of an anchor, which stands before it, and its lines."""

    path: str
    hunks: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def module(self):
        return module_name((ROOT / self.path).relative_to(ROOT))

    def patched(self, text: str) -> str:
        """The text with the added lines; ValueError where the lines around them are not in it."""
        position = 0
        for anchor, lines in self.hunks:
            before = "".join(line[1:] + "\n" for line in lines if line[0] == " ")
            start = text.find(anchor + "\n", position) if anchor else 0
            start = text.find(before, start) if start >= 0 else start
            if start < 0 or not before and text:
                raise ValueError(f"{self.path}: a hunk does not apply after {anchor!r}: {before!r}")
            after = "".join(line[1:] + "\n" for line in lines)
            text, position = text[:start] + after + text[start + len(before) :], start + len(after)
        return text


def read_diffs(text: str) -> dict[str, list[FileDiff]]:
    """The diffs of a page by the heading that they stand under."""
    fences = {section["heading"]: FENCE.search(section["body"]) for section in SECTION.finditer(text)}
    return {heading: _files(fence["diff"]) for heading, fence in fences.items() if fence}


def _files(diff: str) -> list[FileDiff]:
    parts = re.split(r"^\+\+\+ b/(.+)\n", diff, flags=re.MULTILINE)[1:]
    return [FileDiff(path, tuple(_hunks(body))) for path, body in zip(parts[::2], parts[1::2], strict=True)]


def _hunks(body: str):
    for hunk in re.split(r"^(?=@@ )", body, flags=re.MULTILINE):
        lines = hunk.splitlines()
        if lines:
            anchor = lines.pop(0).removeprefix("@@ ") if lines[0].startswith("@@ ") else ""
            yield anchor, tuple(line or " " for line in lines)


DIFFS = read_diffs(PAGE.read_text(encoding="utf-8"))


def apply(heading, monkeypatch, table):
    """Make the new module importable and put the new line into the table, for one test; returns its key."""
    new, changed = DIFFS[heading]
    assert not (ROOT / new.path).exists()
    _run(new, "", monkeypatch)
    owner = import_module(changed.module)
    names = vars(_run(changed, (ROOT / changed.path).read_text(encoding="utf-8")))
    before = getattr(owner, table)
    (key,) = names[table].keys() - before.keys()
    monkeypatch.setitem(before, key, names[table][key])
    return key


def _run(diff, text, monkeypatch=None):
    module = types.ModuleType(diff.module)
    module.__package__ = diff.module.rpartition(".")[0]
    known = sys.modules.get(diff.module)
    with pytest.MonkeyPatch.context() as patches:  # dataclasses look their module up
        (monkeypatch or patches).setitem(sys.modules, diff.module, module)
        exec(compile(diff.patched(text), diff.path, "exec"), vars(module))  # noqa: S102
    assert monkeypatch is not None or sys.modules.get(diff.module) is known
    return module


def test_every_door_is_shown():
    assert list(DIFFS) == [
        "Add a reward",
        "Add a search",
        "Add a backbone of LLaVA-Reward",
        "Add an objective",
        "Add a benchmark",
    ]


def test_a_reward(monkeypatch):
    from fk_reward.rewards import load_reward

    name = apply("Add a reward", monkeypatch, "REWARDS")
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert load_reward(name)(red, "red").tolist() == [1.0]
    assert load_reward(name).card.name == name


def test_a_search(monkeypatch):
    from fk_reward.search import SEARCHES, load_search

    name = apply("Add a search", monkeypatch, "BUILT_IN")
    population = load_search(name, num_particles=4).population()
    population.begin(10)
    assert name in SEARCHES
    assert population.forecast(10).scorings == (4,)
    assert population.advance(torch.tensor([0.1, 0.9, 0.2, 0.8]), step=5).tolist() == [1, 3]


def test_a_backbone(monkeypatch):
    from fk_reward.rewards.llava_reward.backbones.base import Backbone, backbone_spec

    name = apply("Add a backbone of LLaVA-Reward", monkeypatch, "BACKBONES")
    assert backbone_spec(name).model_type == name
    frame = " ".join(DIFFS["Add a backbone of LLaVA-Reward"][0].hunks[0][1])
    assert {method for method in Backbone.__abstractmethods__ if method not in frame} == set()


def test_an_objective(monkeypatch):
    from fk_reward.rewards.llava_reward.objective import find_objective

    hinge = find_objective(apply("Add an objective", monkeypatch, "OBJECTIVES"))
    pairs = torch.tensor([[[0.3], [0.0]], [[0.0], [0.1]]])
    torch.testing.assert_close(hinge.loss(pairs, None, temperature=0.1), torch.tensor(0.1))
    torch.testing.assert_close(hinge.logits(pairs, temperature=0.1), torch.tensor([3.0, -1.0]))
    assert hinge.score(torch.tensor([[0.5]]), ["red"], temperature=0.1).tolist() == [0.5]


def test_a_benchmark(monkeypatch):
    from fk_reward.benchmarks.geneval.suites import find_suite
    from fk_reward.benchmarks.task import TaskOptions

    suite = find_suite(apply("Add a benchmark", monkeypatch, "SUITES"))
    task = suite.task(TaskOptions())
    task.judge("cpu").self_test()
    assert {sample["tag"] for sample in task.samples} == {"red"}


@pytest.mark.parametrize(
    ("diff", "text"),
    [
        ("+++ b/a.py\n@@ T = {\n     1: 2,\n+    3: 4,\n", "T = {\n    1: 3,\n}\n"),
        ("+++ b/a.py\n@@ U = {\n     1: 2,\n+    3: 4,\n", "T = {\n    1: 2,\n}\n"),
        ("+++ b/a.py\n+x = 1\n", "y = 1\n"),
    ],
)
def test_a_diff_that_does_not_fit_fails(diff, text):
    (wrong,) = _files(diff)
    with pytest.raises(ValueError, match="does not apply"):
        wrong.patched(text)


def test_a_diff_that_fits_is_applied():
    (right,) = _files("+++ b/a.py\n@@ T = {\n     1: 2,\n+    3: 4,\n")
    before = "S = {\n    1: 2,\n}\nT = {\n    1: 2,\n"
    assert right.patched(before + "}\n") == before + "    3: 4,\n}\n"
