"""The script that trains skill experts of `shapes-sd`: it runs, goes on, and reports what it says."""

from __future__ import annotations

import itertools

import pytest

from fk_reward.shapes import is_heldout, parse_prompt
from fk_reward.training.skills.images import _image_seed


@pytest.fixture(scope="module")
def skills():
    import skills

    return skills


def made_up(skills, settings, accuracies):
    """Verdicts of models by (model, skill): the first images of each skill are right."""
    keys = [(skill, i) for skill, i, _ in skills.judged_prompts(settings, "untaught")]
    return {
        name: {key: float(key[1] < 2 * accuracies.get((name, key[0]), default)) for key in keys}
        for name, default in accuracies["models"].items()
    }


def test_training_and_judged_prompts_are_apart(skills):
    settings = skills.Settings()
    judged = {side: skills.judged_prompts(settings, side) for side in skills.SIDES}
    for found in judged.values():
        assert len({item[:2] for item in found}) == len(found) >= 450
    for skill in skills.SKILLS:
        texts = skills.training_prompts(skill, settings.num_prompts, 0)
        assert len(texts) == settings.num_prompts
        assert [is_heldout(parse_prompt(text)) for text in texts] == [True, False] * (len(texts) // 2)
        untaught = [prompt for own, _, prompt in judged["untaught"] if own == skill]
        assert all(is_heldout(prompt) for prompt in untaught)
        assert not {prompt.text for prompt in untaught} & set(texts)
        assert {prompt.text for own, _, prompt in judged["taught"] if own == skill} == set(texts)


def test_judged_images_have_noise_of_their_own(skills):
    """Those of taught prompts would else be training images."""
    settings = skills.Settings()
    numbers = itertools.product(range(settings.num_prompts), range(settings.num_candidates))
    drawn = {_image_seed(settings.drawing().seed, *number) for number in numbers}
    judged = {skills._generator(settings.seed, skill, i).initial_seed() for skill in skills.SKILLS for i in range(200)}
    assert len(judged) == 200 * len(skills.SKILLS)
    assert not drawn & judged


def test_the_report_subtracts_what_it_says(skills):
    experts = [f"{skill} (chosen)" for skill in skills.SKILLS]
    models = {"base": 0.0, **dict.fromkeys(experts, 0.5), "merged (chosen)": 0.5}
    accuracies = {"models": models} | {(f"{skill} (chosen)", skill): 1.0 for skill in skills.SKILLS}
    settings = skills.Settings(num_images=8, variants=("chosen",))
    text = skills.report(made_up(skills, settings, accuracies), settings, "untaught")
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert rows["counting (chosen)"] == ["1.000", "0.500", "0.500", "0.500", "0.625"]
    assert rows["counting (chosen) - base"][1] == "+1.000"
    assert rows["counting (chosen) - experts of other skills"][1] == "+0.500"
    assert rows["experts of other skills (chosen) - base"][1] == "+0.500"
    assert rows["merged (chosen) - base"][:2] == [", ".join(skills.SKILLS), "+0.500"]
    assert rows["merged (chosen) - mean of its experts"][1] == "-0.125"


def test_chosen_and_unchosen_images_are_compared_by_skill_and_merged(skills):
    found = [(label, plus, minus) for label, _, plus, minus in skills.comparisons(("chosen", "unchosen"))]
    for name in (*skills.SKILLS, "merged"):
        first, second = f"{name} (chosen)", f"{name} (unchosen)"
        assert (f"{first} - {second}", (first,), (second,)) in found


@pytest.mark.long
def test_it_runs_and_goes_on(skills, tmp_path, capsys):
    for shard in ("1/2", "0/2"):  # two processes, and the rest
        skills.main(out=tmp_path, smoke=True, shard=shard)
        assert not (tmp_path / "report.md").exists()
    for side in skills.SIDES:
        assert len(list((tmp_path / "verdicts" / side).glob("*.jsonl"))) == 1 + 2 * len(skills.SKILLS)
    skills.main(out=tmp_path, smoke=True)
    first = (tmp_path / "report.md").read_text()
    capsys.readouterr()
    (tmp_path / "report.md").unlink()
    skills.main(out=tmp_path, smoke=True)
    assert (tmp_path / "report.md").read_text() == first
    for skill, variant in itertools.product(skills.SKILLS, ("chosen", "unchosen")):
        assert (tmp_path / skill / variant / "pytorch_lora_weights.safetensors").exists()
