"""The host's work: the known counts, and a table."""

from __future__ import annotations

from examples.benchmarks.reward_host_work import attention_calls, main, question_work
from tests.examples.scripts import invoke


def test_attention_calls_of_eight_images():
    assert attention_calls(8, 1024, batched=False) == 22_432
    assert attention_calls(8, 1024, batched=True) == 88


def test_inputs_without_pictures_take_a_fraction():
    work = question_work("vqascore", 2, 512, repeats=2)
    assert work["after"] < work["before"] / 3
    assert work["known"] < work["after"]


def test_the_table(monkeypatch):
    monkeypatch.setattr("examples.benchmarks.reward_host_work._ASKED", {"llava-score": "LLaVA-1.5-7B"})
    table = invoke(main, "--num-images", "1", "--side", "224", "--repeats", "1", "--markdown")
    assert "| attention calls, Qwen2.5-VL's tower | 116 |" in table
