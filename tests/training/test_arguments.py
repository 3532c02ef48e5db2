"""Defaults of full size, and settings from YAML and flags."""

from __future__ import annotations

import inspect

import docstring_parser
import pytest

from fk_reward.training.arguments import (
    LlavaRewardTrainingArguments,
    RewardArguments,
    TrainingArgumentParser,
    parse_arguments,
)

NEEDED = ["--backbone", "b", "--dimension", "safety", "--train_data", "d.json", "--use_cpu"]


def test_defaults_are_those_of_the_paper():
    reward, training = parse_arguments(NEEDED)
    lora = (reward.lora_rank, reward.lora_alpha, reward.lora_dropout)
    assert (*lora, reward.temperature, reward.cross_attention, reward.train_projector) == (
        128,
        256,
        0.05,
        0.1,
        True,
        True,
    )
    assert (training.learning_rate, training.lr_scheduler_type, training.warmup_steps) == (2e-4, "cosine", 0.03)
    assert training.get_warmup_steps(1000) == 30
    assert training.load_best_model_at_end
    assert training.greater_is_better


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "backbone: b\ndimension: safety\ntrain_data: d.json\nuse_cpu: true\nlearning_rate: 1e-5\ncross_attention: no\n"
        "num_crops:\nlora_rank: 8\ndebug: [underflow_overflow]\nlr_scheduler_kwargs: {num_cycles: 0.5}\n"
    )
    reward, training = parse_arguments([str(path), "--lora-rank", "16", "--seed=7"])
    assert (reward.lora_rank, reward.cross_attention, reward.num_crops) == (16, False, None)
    assert (training.learning_rate, training.seed, [option.value for option in training.debug]) == (
        1e-5,
        7,
        ["underflow_overflow"],
    )
    assert training.lr_scheduler_kwargs == {"num_cycles": 0.5}


def test_a_file_extends_another(tmp_path):
    (tmp_path / "base.yaml").write_text("backbone: b\nlora_rank: 8\nnum_crops: 4\nuse_cpu: true\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/middle.yaml").write_text("extends: ../base.yaml\ndimension: safety\nlora_rank: 4\n")
    (tmp_path / "run.yaml").write_text("extends: more/middle.yaml\ntrain_data: d.json\nnum_crops:\n")
    reward, _ = parse_arguments([str(tmp_path / "run.yaml"), "--dimension=overall"])
    assert (reward.backbone, reward.train_data, reward.lora_rank) == ("b", "d.json", 4)
    assert (reward.dimension, reward.num_crops) == ("overall", None)


def test_files_that_extend_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ValueError, match="extends itself, by way of a.yaml, b.yaml"):
        parse_arguments([str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_rnk", "8"], "lora_rnk"),
        (["--lora_ran", "8"], "lora_ran"),
        (["--lora_rank", "many"], "invalid int value"),
        (["--lora_rank", "-1"], "lora_rank must not be negative"),
        (["--backbone_dtype", "int8"], "float32, bfloat16, float16"),
        (["--validation_fraction", "1"], "validation_fraction"),
        (["--margin_scale", "-1"], "margin_scale"),
    ],
)
def test_mistakes_are_told(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*NEEDED, *flags])


def test_what_is_missing_is_told():
    with pytest.raises(ValueError, match="--train_data"):
        parse_arguments(NEEDED[:4])


@pytest.mark.parametrize(
    ("text", "message"), [("- 1\n", "mapping"), ("a: [", "not valid YAML"), ("lora_rnk: 3\n", "lora_rnk")]
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "run.yaml"), *NEEDED])


def test_help_describes_both_kinds_of_settings():
    text = " ".join(TrainingArgumentParser().format_help().split())
    assert "Rank of LoRA on all linear layers of the language model; 0 for no LoRA. (default: 128)" in text
    assert "The peak learning rate. (default: 0.0002)" in text
    assert "--lora_rank" in text
    assert "--per_device_train_batch_size" in text


@pytest.mark.parametrize("kind", [RewardArguments, LlavaRewardTrainingArguments])
def test_every_field_is_documented_in_its_class(kind):
    documented = {param.arg_name for param in docstring_parser.parse(inspect.cleandoc(kind.__doc__)).params}
    assert documented == set(kind.__annotations__)
