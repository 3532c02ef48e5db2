"""A training that was interrupted ends with the same weights, bit for bit, as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerState

from fk_reward.training.checkpoints import last_complete_checkpoint
from tests.repository.layout import ROOT
from tests.tiny.training import make_model, make_trainer, pairs, trained_weights

SETTINGS = {"max_steps": 6, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20}


def run(backbone, folder, *, resume=False, **settings):
    """Six steps, three to an epoch, with dropout; the weights at the end."""
    model = make_model(backbone, dropout=0.2)
    trainer = make_trainer(model, folder, pairs(6), per_device_train_batch_size=2, **(SETTINGS | settings))
    checkpoint = last_complete_checkpoint(folder) if resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trained_weights(model)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name


@pytest.fixture(scope="module")
def whole(tiny_phi, tmp_path_factory):
    """An uninterrupted run: its folder with a checkpoint of each step, and its final weights."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny_phi, folder)


@pytest.mark.parametrize("step", [1, 3, 5], ids=["within-an-epoch", "between-epochs", "in-the-second"])
def test_going_on_from_any_step(tiny_phi, tmp_path, whole, step):
    shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    assert_same(run(tiny_phi, tmp_path, resume=True), whole[1])


@pytest.mark.parametrize("lost", ["rng_state.pth", "optimizer.pt"])
def test_a_resume_that_forgets_something_is_noticed(tiny_phi, tmp_path, whole, monkeypatch, lost):
    """The saboteurs: without the generators' or the optimizer's state the weights must differ."""
    shutil.copytree(whole[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / lost).unlink()
    monkeypatch.setattr("fk_reward.training.checkpoints.checkpoint_problems", lambda checkpoint: [])
    with pytest.raises(AssertionError):
        assert_same(run(tiny_phi, tmp_path, resume=True), whole[1])


@pytest.mark.parametrize("moment", ["after the weights", "in the middle of the state"])
def test_dying_while_a_checkpoint_is_written(tiny_phi, tmp_path, whole, monkeypatch, moment):
    def die(self, target):
        if "checkpoint-3" in str(target):
            if moment == "in the middle of the state":
                Path(target).write_text('{"global_step": 3, "log_his')
            raise KeyboardInterrupt
        return original(self, target)

    owner, name = (Trainer, "_save_rng_state") if moment == "after the weights" else (TrainerState, "save_to_json")
    original = getattr(owner, name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, die)
        run(tiny_phi, tmp_path)
    assert (tmp_path / "checkpoint-3").is_dir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert_same(run(tiny_phi, tmp_path, resume=True), whole[1])


@pytest.mark.slow
def test_a_process_that_is_killed(tiny_phi, tmp_path, whole):
    script = "import sys; from tests.training.test_checkpoints import run; run(sys.argv[1], sys.argv[2])"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-c", script, tiny_phi, tmp_path], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint-2").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "checkpoint-6").is_dir()
    assert_same(run(tiny_phi, tmp_path, resume=True), whole[1])


def test_the_newest_complete_checkpoint_is_found(tmp_path, whole):
    for name, step in {"checkpoint-9": 2, "checkpoint-10": 3, "checkpoint-x": 4}.items():
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / name)
        (tmp_path / name / "trainer_state.json").write_text(
            json.dumps({"global_step": int(name[11:] if step < 4 else 4)})
        )
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(json.dumps({"global_step": 9}))
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"


def test_another_reward_does_not_go_on(tiny_phi, tmp_path, whole):
    model = make_model(tiny_phi, temperature=0.5)
    trainer = make_trainer(model, tmp_path, pairs(), **SETTINGS)
    with pytest.raises(ValueError, match="another kind"):
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-2"))


def damage_truncated(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_missing(folder, name):
    (folder / name).unlink()


def damage_hole(folder, name):
    """What a crash of the machine leaves: the right length, but zeros where a block was not written."""
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)


FILES = (
    "reward.safetensors",
    "reward_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)
DAMAGES = [(damage, name) for name in FILES for damage in (damage_truncated, damage_missing)]
DAMAGES += [(damage_hole, name) for name in ("trainer_state.json", "optimizer.pt", "rng_state.pth")]


@pytest.fixture
def two(tmp_path, whole):
    """Checkpoints of steps 2 and 3."""
    for step in (2, 3):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


@pytest.mark.parametrize(("damage", "name"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_checkpoint_is_passed_over_and_told(two, caplog, damage, name):
    assert last_complete_checkpoint(two) == two / "checkpoint-3"
    assert caplog.text == ""
    damage(two / "checkpoint-3", name)
    assert last_complete_checkpoint(two) == two / "checkpoint-2"
    for part in (f"Continuing from {two / 'checkpoint-2'}", str(two / "checkpoint-3"), Path(name).name):
        assert part in caplog.text
    damage(two / "checkpoint-2", name)
    with pytest.raises(ValueError, match=r"No checkpoint in .* is complete.*checkpoint-3: .*checkpoint-2: "):
        last_complete_checkpoint(two)


def test_going_on_from_an_older_one_ends_as_an_uninterrupted_run(tiny_phi, two, whole):
    damage_truncated(two / "checkpoint-3", "optimizer.pt")
    assert_same(run(tiny_phi, two, resume=True), whole[1])


def tree(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_run_is_not_trained_further(tiny_phi, tmp_path, whole):
    """With a constant learning rate one more step would change the weights, and leave a sixth checkpoint."""
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 5}  # ends within an epoch
    weights = run(tiny_phi, tmp_path, **constant)
    before = tree(tmp_path)
    assert_same(run(tiny_phi, tmp_path, resume=True, **constant), weights)
    assert tree(tmp_path) == before


def test_the_best_weights_are_the_result_of_a_finished_run(tiny_phi, tmp_path, caplog):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_steps": 1, "eval_strategy": "steps"}
    model = make_model(tiny_phi)
    trainer = make_trainer(model, tmp_path, pairs(6), evaluation=pairs(6, swapped=True), **(SETTINGS | best))
    trainer.train()
    found = Path(trainer.state.best_model_checkpoint)
    assert found.name != "checkpoint-6"
    expected = trained_weights(model)
    for damaged in (False, True):
        if damaged:
            damage_truncated(found, "reward.safetensors")
        again = make_model(tiny_phi)
        trainer = make_trainer(again, tmp_path, pairs(6), evaluation=pairs(6, swapped=True), **(SETTINGS | best))
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        if not damaged:
            assert_same(trained_weights(again), expected)
    assert "weights of the last step are kept" in caplog.text
    assert "reward.safetensors" in caplog.text


def test_a_full_disk_names_the_checkpoint(tiny_phi, tmp_path, monkeypatch):
    def full(self, folder):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match=r"checkpoint-1 cannot be written; is the disk full\?"):
        run(tiny_phi, tmp_path)
