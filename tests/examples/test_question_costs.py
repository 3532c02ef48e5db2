"""What judging costs: the size of the judge against the hub's, the table of the docs against the command."""

from __future__ import annotations

import json
import re

import pytest
import torch

from examples.benchmarks import question_costs
from fk_reward.planning.full_size_rewards import qwen3_vl_8b
from tests.examples.scripts import invoke
from tests.repository.layout import ROOT

PAGE = (ROOT / "docs" / "question_benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("costs")
    printed = invoke(question_costs.main, "--markdown", "--out", out)
    return json.loads((out / "question_costs.json").read_text()), printed


def test_the_judge_is_as_large_as_that_of_the_hub():
    with torch.device("meta"):
        model = qwen3_vl_8b().model
    assert sum(weight.numel() for weight in model.parameters()) == 8_767_123_696, "the hub's count"


def test_operations_are_at_least_two_for_each_weight_and_visual_token(written):
    """Of the language model, less its table of words: a lower bound by hand."""
    layers = 36 * (4096 * (32 + 8 + 8) * 128 + 32 * 128 * 4096 + 3 * 4096 * 12288)
    operations = written[0]["settings"]["question"]
    assert 2 * layers * 1024 < operations < 1.6 * 2 * layers * 1024
    assert 0.2 < question_costs.question_operations(512) / operations < 0.4


def test_the_page_says_what_the_command_prints(written):
    found, printed = written
    numbers = re.search(r"takes Qwen3-VL-8B ([\d.]+) · 10¹² operations, of 512 × 512 ([\d.]+) ·", PAGE)
    assert float(numbers[1]) == round(found["settings"]["question"] / 1e12, 1)
    assert float(numbers[2]) == round(question_costs.question_operations(512) / 1e12, 1)
    for row in found["rows"]:
        (minutes,) = re.findall(rf"\| `{row['suite']}` \| .*\| (\d+) minutes?", PAGE)
        assert int(minutes) == round(row["minutes"])
    tables = len(question_costs.BENCHMARKS) + len(question_costs.PREFERENCES)
    assert len(re.findall(r"^\| (?!-)", printed, re.MULTILINE)) == tables + 2


def test_the_page_says_what_preferences_cost(written):
    for row in written[0]["preferences"]:
        name = {"mjbench": r"\[`mjbench`\].*"}.get(row["name"], rf"`{row['name']}`")
        (found,) = re.findall(rf"^\| [^|]* \| {name} \| .* \| (\d+) s, (\d+) min \|", PAGE, re.MULTILINE)
        seconds, minutes = map(int, found)
        assert (seconds, minutes) == (round(60 * row["hpsv2.1"]), round(row["llava-reward-alignment"]))


def test_the_detector_of_geneval(written):
    """Its authors' size is 69 million weights; its operations are seconds on the page."""
    settings = written[0]["settings"]
    assert 0.3e12 < settings["detector"] < 0.6e12
    (seconds,) = re.findall(r"\| `official` \| .* \| (\d+) seconds \|", PAGE)
    assert int(seconds) == round(60 * settings["geneval_minutes"])
