"""One command trains everything: what is done is not done again, what was stopped goes on, wrong settings are named."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import yaml

STAGES = {
    "words": {"run": "toy_stages.write", "options": {"output": "words.txt", "text": "a b"}, "makes": ["words.txt"]},
    "more": {
        "run": "toy_stages.double",
        "options": {"source": "words.txt", "output_dir": "more"},
        "needs": ["words"],
        "makes": ["more/text"],
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

def double(source: Path, output_dir: Path, times: int = 2, resume: bool = False) -> None:
    "As a training: what a checkpoint holds is not made again."
    calls.append(f"double {times} {resume}")
    state = output_dir / "checkpoints" / "state"
    if not (resume and state.exists()):
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(source.read_text() * times)
    (output_dir / "text").write_text(state.read_text())
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
        train_all.train_all(options.pop("runs", tmp_path / "runs"), settings, **options)
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
    assert (toy.runs / "more" / "text").read_text() == "cc"
    (toy.runs / "more" / "text").write_text("spoilt")
    assert toy.run(changed("words", text="c")) == ["double 2 True"]
    (toy.runs / "words.txt").unlink()
    assert toy.run(changed("words", text="c")) == ["write"]  # it made the same file, so that nothing else changes


def test_what_changed_begins_anew_and_what_was_stopped_goes_on(toy):
    """A checkpoint of other settings, files or of a script before would be taken for the result."""
    toy.run()
    text, state = toy.runs / "more" / "text", toy.runs / "more" / "checkpoints" / "state"
    toy.run(changed("more", times=3))
    assert text.read_text() == "a ba ba b"
    state.write_text("of a run that was stopped")
    text.unlink()
    toy.run(changed("more", times=3))
    assert text.read_text() == "of a run that was stopped"
    toy.run(changed("more", times=3), redo=["more"])
    assert text.read_text() == "a ba ba b"


def test_files_of_a_run_by_hand_are_taken_and_said(toy, capsys):
    (toy.runs / "more" / "checkpoints").mkdir(parents=True)
    (toy.runs / "more" / "checkpoints" / "state").write_text("by hand")
    toy.run()
    assert (
        "more: goes on with files that stages.json does not know; --redo more removes them" in capsys.readouterr().out
    )
    assert (toy.runs / "more" / "text").read_text() == "by hand"


def test_files_of_settings_are_part_of_what_a_stage_is_run_with(toy, tmp_path, monkeypatch):
    import train_all

    monkeypatch.setattr(train_all, "SETTINGS", tmp_path / "train_all.yaml")
    read = {**STAGES, "words": {**STAGES["words"], "reads": ["kinds/*.yaml"]}}
    with pytest.raises(FileNotFoundError, match=r"words reads kinds/\*.yaml"):
        toy.run(read)
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "one.yaml").write_text("rank: 16")
    assert toy.run(read) == ["write", "double 2 True"]
    (tmp_path / "kinds" / "one.yaml").write_text("rank: 12")
    assert toy.run(read) == ["write"]


def test_a_checkpoint_is_no_result(tmp_path):
    """Also where a folder above has that name."""
    from train_all import checksum

    folder = tmp_path / "checkpoints" / "more"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "text").write_text("one")
    before = checksum(folder)
    (folder / "checkpoints" / "state").write_text("of a training")
    assert checksum(folder) == before
    (folder / "text").write_text("two")
    assert checksum(folder) != before


def test_stages_can_be_chosen(toy):
    other = {"run": "toy_stages.write", "options": {"output": "other.txt", "text": "o"}, "makes": ["other.txt"]}
    stages = {"other": other, **STAGES}
    with pytest.raises(FileNotFoundError, match="more needs words: run that before"):
        toy.run(stages, only=["more"])
    assert toy.run(stages, until="words") == ["write"]
    assert toy.run(stages, until="more") == ["double 2 True"]
    assert not (toy.runs / "other.txt").exists(), "it is not needed"
    (toy.runs / "words.txt").write_text("by hand")
    assert toy.run(stages, only=["more"]) == ["double 2 True"]
    assert (toy.runs / "more" / "text").read_text() == "by handby hand"


def test_a_small_run_has_a_folder_of_its_own(toy, tmp_path):
    assert toy.run(smoke=True, runs=tmp_path / "small") == ["write", "double 1 True"]
    with pytest.raises(ValueError, match="small holds a --smoke training"):
        toy.run(runs=tmp_path / "small")
    toy.run()
    with pytest.raises(ValueError, match="runs holds a whole training: name another folder with --runs"):
        toy.run(smoke=True)


def test_a_stage_that_fails_is_not_done(toy):
    broken = {**STAGES, "more": {**STAGES["more"], "makes": ["other"]}}
    with pytest.raises(FileNotFoundError, match=r"more \(toy_stages.double\) should have made other"):
        toy.run(broken)
    assert "files" not in json.loads((toy.runs / "stages.json").read_text())["more"]
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
    with pytest.raises(ValueError, match="mor: no such stage"):
        toy.run(redo=["mor"])
    with pytest.raises(ValueError, match="--redo more: not among the stages that were chosen"):
        toy.run(only=["words"], redo=["more"])
    with pytest.raises(ValueError, match="give one of them"):
        toy.run(only=["words"], until="more")
    with pytest.raises(ValueError, match=r"more: toy_stages.double takes source, .*, resume; got tims"):
        toy.run(changed("more", tims=3))
    with pytest.raises(ValueError, match="words needs more, which should stand before it"):
        toy.run({**STAGES, "words": {**STAGES["words"], "needs": ["more"]}})


def test_the_real_settings_name_what_was_chosen():
    """A default that changes in a script would not be noticed."""
    import train_all

    chosen = {"max_steps", "batch_size", "learning_rate", "tower_learning_rate", "place_weight", "match_share", "seed"}
    for stage in train_all.read_stages(train_all.SETTINGS):
        module, _, function = stage.run.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        own = {name for name in chosen & parameters.keys() if parameters[name].default is not None}
        assert own <= stage.options.keys(), stage.name
        assert {*stage.options, *stage.smoke} <= parameters.keys(), stage.name


def test_the_document_names_every_stage():
    import train_all

    text = train_all.SETTINGS.with_name("README.md").read_text()
    patterns = re.findall(r"`([\w*-]+)`", text)
    for stage in train_all.read_stages(train_all.SETTINGS):
        assert any(fnmatch(stage.name, pattern) for pattern in patterns), stage.name


def test_nothing_is_installed_where_something_is_missing_or_too_large(tmp_path, monkeypatch):
    import train_all

    runs, assets = tmp_path / "runs", tmp_path / "assets"
    monkeypatch.setattr(train_all, "SHIPPED", ("one/model", "two/judge-*"))
    for name in ("runs/one/model", "assets/model", "assets/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name)
    with pytest.raises(FileNotFoundError, match=r"has no two/judge-\*: run the stages"):
        train_all.install(runs, assets)
    (runs / "two" / "judge-a").mkdir(parents=True)
    (runs / "two" / "judge-a" / "weights").write_text("a")
    size = len("runs/one/model") + len("a") + len("assets/other")
    monkeypatch.setattr(train_all, "MAX_BYTES", size - 1)
    with pytest.raises(ValueError, match="MB at most"):
        train_all.install(runs, assets)
    assert (assets / "model" / "weights").read_text() == "assets/model"
    monkeypatch.setattr(train_all, "MAX_BYTES", size)
    train_all.install(runs, assets)
    found = {path.parent.name: path.read_text() for path in assets.glob("*/weights")}
    assert found == {"model": "runs/one/model", "judge-a": "a", "other": "assets/other"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Everything, in a few steps each."""
    import train_all

    folder = tmp_path_factory.mktemp("runs")
    train_all.train_all(folder, smoke=True)
    return folder


@pytest.mark.long
def test_the_real_settings_run_from_words_to_rewards(runs):
    import train_all

    stages = train_all.read_stages(train_all.SETTINGS)
    assert [*json.loads((runs / "stages.json").read_text())] == [stage.name for stage in stages]
    assert all((runs / name).exists() for stage in stages for name in stage.makes)


@pytest.mark.long
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
