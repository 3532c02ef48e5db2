"""The training loop of the recipes, on a model of one number: what a milestone, a checkpoint and an end leave."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn


class Line(nn.Module):
    """Learns the mean of what it is shown; counts its steps."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))
        self.steps = 0

    def forward(self, values):
        self.steps += 1
        return {"loss": (self.mean - values).square().mean()}


def trained(folder, max_steps, **options):
    from fit import FitConfig, fit
    from scene_data import TensorsDataset

    known = {"batch_size": 2, "learning_rate": 0.1, "seed": 0, "ema_decay": 0.5, "warmup_steps": 0, "decay_steps": 0}
    config = FitConfig(output_dir=folder, max_steps=max_steps, save_steps=2, **known | options)
    values = torch.linspace(0, 10, 40)[:, None]
    model = Line()
    assert fit(model, TensorsDataset(values=values), config)
    return model


def test_a_milestone_is_the_average_of_a_run_of_that_length(tmp_path):
    whole = trained(tmp_path / "long", 6, milestone=4)
    kept = load_file(tmp_path / "long" / "milestone.safetensors")["mean"]
    assert torch.equal(kept, trained(tmp_path / "short", 4).mean.data)
    assert not torch.equal(kept, whole.mean.data)


def test_a_run_that_is_finished_takes_no_further_step(tmp_path):
    first = trained(tmp_path, 4)
    again = trained(tmp_path, 4, resume=True)
    assert torch.equal(first.mean, again.mean) and (first.steps, again.steps) == (4, 0)


def test_a_run_that_was_stopped_goes_on_as_one_of_any_length(tmp_path):
    trained(tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    longer = trained(tmp_path, 6, resume=True)
    assert torch.equal(longer.mean, trained(tmp_path / "whole", 6).mean) and longer.steps == 4


def test_a_longer_run_is_not_taken_for_a_shorter_one(tmp_path):
    trained(tmp_path, 4)
    with pytest.raises(ValueError, match="checkpoint-4 has more than 2 steps: ask for 4, or remove it"):
        trained(tmp_path, 2, resume=True)


def test_there_is_nothing_to_resume_in_a_new_folder(tmp_path):
    assert trained(tmp_path / "new", 2, resume=True).steps == 2
