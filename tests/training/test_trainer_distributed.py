"""Two processes take the step that one process takes on the same batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from tests.accelerate_launch import launch
from tests.training.distributed_step import main
from tests.training.tiny_training import make_model, trained_weights


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
