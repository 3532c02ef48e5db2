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
from tests.training.tiny_training import make_model, make_trainer, pairs, trained_weights

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
def test_a_resume_that_forgets_something_is_noticed(tiny_phi, tmp_path, whole, lost):
    """The saboteurs: without the generators' or the optimizer's state the weights must differ."""
    shutil.copytree(whole[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / lost).unlink()
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
    script = "import sys; from tests.training.test_trainer_resume import run; run(sys.argv[1], sys.argv[2])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, tiny_phi, tmp_path], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint-2").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "checkpoint-6").is_dir()
    assert_same(run(tiny_phi, tmp_path, resume=True), whole[1])


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    for step, state in {9: {"global_step": 9}, 10: {"global_step": 10}, 11: {"global_step": 10}, 12: None}.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "reward_config.json").write_text("{}")
        if state is not None:
            (folder / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-x").mkdir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "reward_config.json").unlink()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"


def test_another_reward_does_not_go_on(tiny_phi, tmp_path, whole):
    model = make_model(tiny_phi, temperature=0.5)
    trainer = make_trainer(model, tmp_path, pairs(), **SETTINGS)
    with pytest.raises(ValueError, match="another kind"):
        trainer.train(resume_from_checkpoint=str(whole[0] / "checkpoint-2"))
