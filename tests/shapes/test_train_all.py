"""One command trains everything: what is done is not done again, what was stopped goes on, wrong settings are named."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import yaml

STAGES = {
    "words": {"run": "toy_stages.write", "options": {"output": "words.txt", "text": "a b"}, "makes": ["words.txt"]},
    "more": {
        "run": "toy_stages.double",
        "options": {"source": "words.txt", "output": "more"},
        "needs": ["words"],
        "makes": ["more"],
        "smoke": {"times": 1},
        "minutes": 90,
    },
}
TOY = """
from pathlib import Path

calls = []

def write(output: Path, text: str) -> None:
    calls.append("write")
    output.write_text(text)

def join(parts: list[Path], output: Path) -> None:
    output.write_text(" ".join(part.read_text() for part in parts))

def double(source: Path, output: Path, times: int = 2, resume: bool = False) -> None:
    calls.append(f"double {times} {resume}")
    output.mkdir(exist_ok=True)
    (output / "text").write_text(source.read_text() * times)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs two toy stages with given changes to their settings; returns the calls and lets files be looked at."""
    (tmp_path / "toy_stages.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_stages", raising=False)
    import toy_stages

    def run(stages=None, **options):
        import train_all

        settings = tmp_path / "stages.yaml"
        settings.write_text(yaml.safe_dump(stages or STAGES, sort_keys=False))
        toy_stages.calls.clear()
        train_all.train_all(tmp_path / "runs", settings, **options)
        return list(toy_stages.calls)

    return SimpleNamespace(run=run, runs=tmp_path / "runs")


def changed(stage, **options):
    return {**STAGES, stage: {**STAGES[stage], "options": {**STAGES[stage]["options"], **options}}}


def test_what_is_done_is_not_done_again(toy, capsys):
    assert toy.run() == ["write", "double 2 True"]
    assert "about 90 minutes, 1.5 hours to the end" in capsys.readouterr().out
    assert toy.run() == []
    assert capsys.readouterr().out.count("done before") == 2


def test_other_settings_or_files_run_a_stage_and_those_behind_it(toy):
    toy.run()
    assert toy.run(changed("more", times=3)) == ["double 3 True"]
    assert toy.run(changed("words", text="c")) == ["write", "double 2 True"]
    (toy.runs / "more" / "text").write_text("spoilt")
    assert toy.run(changed("words", text="c")) == ["double 2 True"]
    (toy.runs / "words.txt").unlink()
    assert toy.run(changed("words", text="c")) == ["write"]  # it made the same file, so that nothing else changes


def test_a_checkpoint_is_no_result(toy):
    toy.run()
    (toy.runs / "more" / "checkpoints").mkdir()
    (toy.runs / "more" / "checkpoints" / "state").write_text("of a training")
    assert toy.run() == []


def test_stages_can_be_chosen_and_run_in_small(toy):
    assert toy.run(until="words") == ["write"]
    assert toy.run(only=["more"], smoke=True) == ["double 1 True"]
    assert toy.run(only=["more"]) == ["double 2 True"]
    assert toy.run(redo=["words"]) == ["write"]


def test_a_stage_that_fails_is_not_done(toy):
    broken = {**STAGES, "more": {**STAGES["more"], "makes": ["other"]}}
    with pytest.raises(FileNotFoundError, match=r"more \(toy_stages.double\) should have made other"):
        toy.run(broken)
    assert [*json.loads((toy.runs / "stages.json").read_text())] == ["words"]
    assert toy.run() == ["double 2 True"]


def test_every_pattern_of_a_list_should_have_a_file(toy):
    options = {"parts": ["words*", "others*"], "output": "joined"}
    joined = {"run": "toy_stages.join", "options": options, "needs": ["words"], "makes": ["joined"]}
    with pytest.raises(FileNotFoundError, match=r"is called others\*; run the stages before"):
        toy.run({**STAGES, "joined": joined})
    (toy.runs / "others.txt").write_text("c")
    toy.run({**STAGES, "joined": joined})
    assert (toy.runs / "joined").read_text() == "a b c"


def test_wrong_settings_are_named(toy):
    with pytest.raises(ValueError, match="mor: no such stage; there are words, more"):
        toy.run(until="mor")
    with pytest.raises(ValueError, match="words needs more, which should stand before it"):
        toy.run({**STAGES, "words": {**STAGES["words"], "needs": ["more"]}})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Everything, in a few steps each."""
    import train_all

    folder = tmp_path_factory.mktemp("runs")
    train_all.train_all(folder, smoke=True)
    return folder


def test_the_real_settings_run_from_words_to_rewards(runs):
    import train_all

    stages = train_all.read_stages(train_all.SETTINGS)
    assert [*json.loads((runs / "stages.json").read_text())] == [stage.name for stage in stages]
    assert all((runs / name).exists() for stage in stages for name in stage.makes)


def test_all_that_ships_can_be_installed_and_loaded(runs, tmp_path, monkeypatch):
    import train_all
    from diffusers import DiffusionPipeline
    from transformers import CLIPModel

    from fk_reward.rewards import load_reward

    train_all.install(runs, tmp_path)
    made = {folder.name for folder in tmp_path.iterdir()}
    rewards = {f"shapes-llava-reward-{name}" for name in ("alignment", "fidelity", "safety", "alignment-bands")}
    models = {"shapes-sd", "shapes-sd-lcm", "shapes-preview", "shapes-clip", "shapes-mllm", "shapes-imagereward"}
    assert made == models | rewards
    for name in ("shapes-sd", "shapes-sd-lcm"):
        DiffusionPipeline.from_pretrained(tmp_path / name)
    CLIPModel.from_pretrained(tmp_path / "shapes-clip")
    folders = {"backbone": tmp_path / "shapes-mllm", "adapter": tmp_path / "shapes-llava-reward-alignment"}
    banded = load_reward("llava-reward", **folders, bands=tmp_path / "shapes-llava-reward-alignment-bands")
    assert banded.at_noise(0.9) is not banded and banded.at_noise(0.3) is banded
    monkeypatch.setattr(train_all, "MAX_BYTES", 1e6)
    with pytest.raises(ValueError, match="should take 1 MB at most"):
        train_all.install(runs, tmp_path)
