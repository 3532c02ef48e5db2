"""The trainer learns what the data say, touches nothing else, and writes what rewards read; on two processes, too."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import EarlyStoppingCallback, TrainingArguments

from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.training import binary_loss, bradley_terry_loss, collate_preferences, general_preference_loss
from fk_reward.training.preference_data import labels_of_pairs
from tests.tiny.training import frozen_weights, labelled, make_model, make_trainer, pairs, trained_weights
from tests.training.distributed_step import main
from tests.two_processes import launch

GENERAL = {"objective": "general-preference", "value_head_dim": 4}
LEARNING = {"max_steps": 16, "learning_rate": 1e-2, "warmup_steps": 2}


def learn(folder, out, rows, **config):
    trainer = make_trainer(make_model(folder, **config), out, rows, **LEARNING)
    trainer.train()
    return trainer


def assert_learnt(trainer, rows):
    assert trainer.evaluate(rows)["eval_accuracy"] == 1.0


@pytest.mark.parametrize("config", [{}, {"cross_attention": False}, GENERAL], ids=["bt", "no-skip-ca", "gpm"])
def test_a_few_pairs_are_learnt_by_heart(tiny_phi, tmp_path, config):
    assert_learnt(learn(tiny_phi, tmp_path, pairs(), **config), pairs())


def test_a_few_labels_are_learnt_by_heart(tiny_phi, tmp_path):
    assert_learnt(learn(tiny_phi, tmp_path, labelled(), objective="binary"), labelled())


def test_swapped_pairs_are_not_learnt(tiny_phi, tmp_path):
    """The saboteur: preferences the wrong way round must fail the same check."""
    trainer = learn(tiny_phi, tmp_path, pairs(swapped=True))
    with pytest.raises(AssertionError):
        assert_learnt(trainer, pairs())


def test_nothing_but_the_dimension_changes(tiny_phi, tmp_path):
    model = make_model(tiny_phi)
    frozen, trained = frozen_weights(model), trained_weights(model)
    make_trainer(model, tmp_path, pairs(), max_steps=3).train()
    assert all(torch.equal(weight, frozen[name]) for name, weight in frozen_weights(model).items())
    changed = {name for name, weight in trained_weights(model).items() if not torch.equal(weight, trained[name])}
    assert changed == trained.keys()


@pytest.mark.parametrize("margin_scale", [0.0, 0.3])
def test_the_loss_is_that_of_two_forwards(tiny_phi, tmp_path, margin_scale):
    batch = collate_preferences(pairs(3))
    for config in ({}, GENERAL) if margin_scale == 0 else ({},):
        model = make_model(tiny_phi, **config).eval()
        trainer = make_trainer(model, tmp_path, pairs(), margin_scale=margin_scale)
        chosen, rejected = (model(batch["images"][i : i + 3], batch["prompts"][i : i + 3]) for i in (0, 3))
        if config:
            expected = general_preference_loss(chosen, rejected, temperature=0.1)
        else:
            margin = margin_scale * batch["margin"]
            expected = bradley_terry_loss(chosen[:, 0], rejected[:, 0], temperature=0.1, margin=margin)
        torch.testing.assert_close(trainer.compute_loss(model, batch), expected)


def test_the_binary_loss_is_that_of_the_logits(tiny_phi, tmp_path):
    model, batch = make_model(tiny_phi, objective="binary").eval(), collate_preferences(labelled(3))
    expected = binary_loss(model(batch["images"], batch["prompts"])[:, 0], batch["labels"])
    torch.testing.assert_close(make_trainer(model, tmp_path, labelled()).compute_loss(model, batch), expected)


def test_measures_do_not_depend_on_the_batch_size(tiny_phi, tmp_path):
    model = make_model(tiny_phi)
    settings = ({"per_device_eval_batch_size": size, "margin_scale": 0.1} for size in (7, 3))
    one, other = (make_trainer(model, tmp_path, pairs(), **setting).evaluate(pairs(7)) for setting in settings)
    names = [f"eval_{name}" for name in ("loss", "accuracy", "accuracy_without_ties", "ties", "calibration_error")]
    assert [one[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-5)
    batch = collate_preferences(pairs(7))
    with torch.no_grad():
        loss = make_trainer(model.eval(), tmp_path, pairs(), margin_scale=0.1).compute_loss(model, batch)
    assert one["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)


def gradients(folder, out, **settings):
    model = make_model(folder, dropout=0.0)
    make_trainer(model, out, pairs(4), max_steps=1, optim="sgd", learning_rate=1.0, warmup_steps=0, **settings).train()
    return trained_weights(model)


def test_recomputing_activations_and_accumulating_give_the_same_step(tiny_phi, tmp_path):
    expected = gradients(tiny_phi, tmp_path)
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    recompute = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    for settings in ({recompute: True}, accumulated):
        for name, weight in gradients(tiny_phi, tmp_path, **settings).items():
            torch.testing.assert_close(weight, expected[name], msg=f"{settings}: {name}")


def test_the_best_weights_are_kept_and_training_stops_early(tiny_phi, tmp_path):
    """Validation pairs the wrong way round get worse with each step, so the first checkpoint is the best."""
    each_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    model = make_model(tiny_phi)
    trainer = make_trainer(
        model,
        tmp_path,
        pairs(),
        evaluation=pairs(swapped=True),
        callbacks=[EarlyStoppingCallback(2)],
        **{**LEARNING, **each_step, "load_best_model_at_end": True, "metric_for_best_model": "loss"},
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) < LEARNING["max_steps"]
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_a_checkpoint_holds_what_is_trained_and_is_a_reward(tiny_phi, tmp_path):
    model = make_model(tiny_phi)
    make_trainer(model, tmp_path, pairs(), max_steps=2, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "checkpoint-2"
    weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    assert {path.name for path in weights} == {"adapter_model.safetensors", "reward.safetensors"}
    size = sum(4 * weight.numel() for weight in trained_weights(model).values())
    assert size < sum(path.stat().st_size for path in weights) < 1.2 * size + 20_000
    reward = load_reward("llava-reward", adapter=folder, backbone=tiny_phi, torch_dtype=torch.float32, num_crops=1)
    batch = collate_preferences(labelled(3))
    with torch.no_grad():
        expected = model.eval()(batch["images"], batch["prompts"])[:, 0]
    torch.testing.assert_close(reward(batch["images"], batch["prompts"]), expected)


def test_a_loss_that_is_not_finite_ends_the_run(tiny_phi, tmp_path):
    model = make_model(tiny_phi)
    torch.nn.init.constant_(model.network.heads["alignment"].value_head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="after step 0"):
        make_trainer(model, tmp_path, pairs(), max_steps=1).train()


def test_margins_must_be_there_and_be_for_the_objective(tiny_phi, tmp_path):
    rows = [dataclasses.replace(pair, margin=None) for pair in pairs()]
    with pytest.raises(ValueError, match="no margin"):
        make_trainer(make_model(tiny_phi), tmp_path, rows, max_steps=1, margin_scale=1.0).train()
    with pytest.raises(ValueError, match="Bradley-Terry"):
        make_trainer(make_model(tiny_phi, **GENERAL), tmp_path, pairs(), max_steps=1, margin_scale=1.0).train()


def test_pairs_do_not_fit_a_binary_objective(tiny_phi, tmp_path):
    with pytest.raises(ValueError, match="labelled images"):
        make_trainer(make_model(tiny_phi, objective="binary"), tmp_path, pairs(), max_steps=1).train()


def test_pairs_as_labels_are_learnt_as_the_official_code_does(tiny_phi):
    items = labels_of_pairs(pairs(3))
    assert [item.label for item in items] == [True, False] * 3
    model, batch = make_model(tiny_phi, objective="binary").eval(), collate_preferences(items)
    logits = model(batch["images"], batch["prompts"])[:, 0]
    by_hand = functional.softplus(-logits[::2]).mean() / 2 + functional.softplus(logits[1::2]).mean() / 2
    torch.testing.assert_close(binary_loss(logits, batch["labels"]), by_hand)


def test_several_gpus_in_one_process_are_refused(tiny_phi, tmp_path):
    trainer = make_trainer(make_model(tiny_phi), tmp_path, pairs())
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="accelerate launch"):
        type(trainer)(trainer.reward, trainer.args, data_collator=collate_preferences)


@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(tiny_phi, tmp_path):
    (tmp_path / "one").mkdir()
    main(tiny_phi, tmp_path / "one", 4)
    launch("tests.training.distributed_step", tiny_phi, tmp_path / "two", 2, timeout=300)
    one, two = (load_file(tmp_path / folder / "trained.safetensors") for folder in ("one", "two"))
    start = trained_weights(make_model(tiny_phi, dropout=0.0))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    assert any((weight - start[name]).abs().max() > 1e-2 for name, weight in one.items())
    processes, loss = zip(
        *((tmp_path / folder / "loss.txt").read_text().split() for folder in ("one", "two")), strict=True
    )
    assert processes == ("1", "2")
    assert float(loss[0]) == pytest.approx(float(loss[1]), rel=1e-4)
    assert load_own_checkpoint(tmp_path / "two").config.dimension == "alignment"
