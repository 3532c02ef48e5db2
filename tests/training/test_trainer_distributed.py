"""Two processes take the step that one process takes on the same batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from tests.repository.layout import ROOT
from tests.training.distributed_step import main
from tests.training.tiny_training import make_model, trained_weights

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
"""accelerate's way to start several processes, which then find themselves on the CPU."""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = (*LAUNCH, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(_free_port()))
    command = [sys.executable, *options, "-m", "tests.training.distributed_step", *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_take_the_same_step_as_one(tiny_phi, tmp_path):
    (tmp_path / "one").mkdir()
    main(tiny_phi, tmp_path / "one", 4)
    launch(tiny_phi, tmp_path / "two", 2)
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
