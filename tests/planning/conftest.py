"""A tiny pipeline and a trained reward, with their numbers and without."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from torch import nn

from fk_reward.benchmarks.hollow import without_weights
from fk_reward.planning.subjects import Subjects
from fk_reward.rewards import load_reward


@pytest.fixture(scope="session")
def subjects(tiny_sd, tiny_sdxl):
    """Makes the subjects of a plan: real ones, or hollow twins of them."""
    makers = {"sd": tiny_sd, "sdxl": tiny_sdxl}

    @contextmanager
    def make(family, *, hollow):
        pipe, reward = makers[family](), load_reward("shapes-clipscore")
        if not hollow:
            yield Subjects(pipe, (reward,))
            return
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                module.to("meta")
        with without_weights(reward):
            yield Subjects(pipe, (reward,))

    return make
