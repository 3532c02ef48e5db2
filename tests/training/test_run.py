"""Rows whose prompts the backbone cannot read are found before anything is trained."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fk_reward.models import resolve_model
from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments
from fk_reward.training.preference_data import PreferenceDataError
from fk_reward.training.run import make_trainer

LONG = "a red star beside a blue circle " * 100
PROMPTS = {"long": LONG, "control token": "a star <|end|> and more", "image": "a <|image_1|> star"}


def prepared(folder, prompts, **settings):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    rows = [{"prompt": prompt, "chosen_path": "a.png", "reject_path": "b.png"} for prompt in prompts]
    (folder / "pairs.json").write_text(json.dumps(rows))
    reward = RewardArguments(
        backbone=resolve_model("shapes-mllm"),
        train_data=str(folder / "pairs.json"),
        dimension="alignment",
        validation_fraction=0,
        backbone_dtype="float32",
        **settings,
    )
    arguments = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": True}
    return make_trainer(reward, LlavaRewardTrainingArguments(output_dir=str(folder / "out"), **arguments))


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_that_the_backbone_cannot_read_is_a_bad_row(tmp_path, prompt):
    with pytest.raises(PreferenceDataError, match=r"pairs\.json:2: .*(positions|control token)"):
        prepared(tmp_path, ["a red square", prompt])


def test_bad_rows_are_skipped(tmp_path, caplog):
    trainer = prepared(tmp_path, ["a red square", *PROMPTS.values()], skip_bad_rows=True)
    assert [item.prompts[0] for item in trainer.train_dataset.items] == ["a red square"]
    assert "Skipped rows" in caplog.text


def test_brackets_alone_are_text(tmp_path):
    trainer = prepared(tmp_path, ["a [red|blue] square", "a star < a circle"])
    assert len(trainer.train_dataset) == 2
