"""The commands of the tutorial of a reward that reads noise, in small: from nothing to a call that asks the band."""

from __future__ import annotations

import pytest

from tests.command_line import run_command_line
from tests.repository.layout import ROOT
from tests.repository.snippets import commands, read_snippets

PAGE = ROOT / "docs" / "tutorials" / "noise_aware_reward.md"
SMALLER = {
    "--num-prompts": "6",
    "--num-seeds": "2",
    "--num_pairs": "16",
    "--per_device_train_batch_size": "4",
    "--validation_fraction": "0.34",
}
"""As examples/shapes/train_bands.py --smoke."""


def in_small(words):
    """A command with less of everything."""
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def test_numbers_are_found():
    assert in_small(["record", "--num-prompts", "60", "--steps", "20"]) == [
        "record",
        "--num-prompts",
        "6",
        "--steps",
        "20",
    ]
    changed = [words for words in commands(PAGE.read_text()) if in_small(words) != words]
    assert [words[0] for words in changed] == ["record", "record", "train"]


@pytest.mark.long
def test_the_way_from_recording_to_steering(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in commands(PAGE.read_text()):
        result = run_command_line(*in_small(words))
        if "learnt nothing" in result.output:  # sixteen pairs may teach nothing, which the page says, too
            pytest.skip("so few pairs taught nothing")
        assert result.exit_code == 0, result.output
    snippet = next(each for each in read_snippets(PAGE) if each.skip_reason)
    snippet.run({})
    printed = capsys.readouterr().out
    assert "alignment@0.9" in printed, printed
