"""What people type is shown as they typed it by every command, and nothing that only shows a result ends a run."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fk_reward import SteeringTrace
from fk_reward.text import visible

HOSTILE = (
    "a mug with a $_$ face",
    "a [cat|dog] in a hat",
    "a star [/red] circle",
    "[bold]a[/bold] :smile: 3.5",
    "\x1b[31mred\x1b[0m\ncat\r\a",
    "猫 😀 \u202eabc",
    "a <b>|*_`$ & \\frac{1}{2}",
)


@pytest.fixture
def options(model, tmp_path):
    return ["--model", model, "--reward", "brightness", "--steps", 2, "-k", 2, "--out", tmp_path / "out"]


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_generate_makes_all_prompts_and_shows_them(run, options, tmp_path, caplog):
    result = run("generate", *HOSTILE, *options)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for prompt in HOSTILE:
        assert visible(prompt) in result.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [entry["prompt"] for entry in record["results"]] == list(HOSTILE)
    assert len(list((tmp_path / "out").glob("lineage-*.png"))) == len(HOSTILE)
    assert "left out" not in caplog.text


def test_a_lineage_that_cannot_be_drawn_does_not_take_the_images_with_it(run, options, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("no font")

    monkeypatch.setattr(SteeringTrace, "plot", fail)
    result = run("generate", "a", "b", *options)
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["results"]) == 2
    assert "lineage-000.png failed, and was left out: ValueError: no font" in caplog.text


@pytest.mark.parametrize("prompt", HOSTILE)
def test_score_shows_the_prompt(run, image, prompt):
    result = run("score", image, "--prompt", prompt, "--reward", "brightness")
    assert result.exit_code == 0, result.output
    assert visible(prompt) in result.stdout and "\x1b" not in result.stdout
    written = json.loads(run("score", image, "--prompt", prompt, "--reward", "brightness", "--json").stdout)
    assert written["scores"][0]["prompt"] == prompt


def test_half_characters_are_refused_before_a_model_is_loaded(refused, options, image):
    assert "--prompt[0]: '\\ud83d' at place 2" in refused("score", image, "--prompt", "a \ud83d", "-r", "no-reward")
    options[1] = "no/such-model"
    assert "prompts[1]: '\\ud83d' at place 2" in refused("generate", "a star", "a \ud83d", *options)


def test_errors_show_what_was_typed(refused, image, tmp_path):
    assert "[/x] a" in refused("score", tmp_path / "[/x] a.png", "--prompt", "a", "--reward", "brightness")
    assert "'[red]'" in refused("score", image, "--prompt", "a", "--reward", "[red]")


def test_hard_negatives_show_captions(run, image, tmp_path):
    captions = [f"a red circle [/x] and a blue square {visible(text)}" for text in HOSTILE[:2]]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"prompt": text, "path": image.name} for text in captions]))
    result = run("hard-negatives", path, tmp_path / "pairs.json")
    assert result.exit_code == 0, result.output
    assert "[/x]" in " ".join(result.output.split())


def test_the_demo_writes_its_figures_before_it_draws(run, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("no font")

    monkeypatch.setattr(SteeringTrace, "plot", fail)
    monkeypatch.setattr("fk_reward.cli.demo_comparison.draw_demo", fail)
    result = run("demo", "--out", tmp_path / "demo", "--num-prompts", 1, "-k", 2, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"]
    assert caplog.text.count("left out") == 2
