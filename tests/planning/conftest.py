"""A tiny pipeline and a trained reward, with their numbers and without."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from torch import nn

from fk_reward.pipelines import ReducedResolution
from fk_reward.planning.meta_device import without_weights
from fk_reward.planning.planned_models import PlannedModels
from fk_reward.rewards import load_reward
from fk_reward.rewards.text_cache import TextCache
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder


@pytest.fixture(autouse=True)
def text_read_each_time(monkeypatch):
    """As plans count it; a real call reads the text of a CLIP reward once."""
    monkeypatch.setattr(TextCache, "get", lambda self, tokens, encode, *, towers: encode(tokens))


@pytest.fixture(scope="session")
def models(tiny_sd, tiny_sdxl):
    """Makes the models of a plan: real ones, or twins of them on the meta device."""
    makers = {"sd": tiny_sd, "sdxl": tiny_sdxl}

    @contextmanager
    def make(family, *, on_meta, preview=None):
        pipe, reward = makers[family](), load_reward("shapes-clipscore")
        decoders = {
            None: None,
            "tiny": make_tiny_autoencoder(latent_channels=pipe.vae.config.latent_channels),
            "reduced": ReducedResolution(2),
        }
        made = PlannedModels(pipe, (reward,), decoders[preview])
        if not on_meta:
            yield made
            return
        for module in (*pipe.components.values(), made.preview):
            if isinstance(module, nn.Module):
                module.to("meta")
        with without_weights(reward):
            yield made

    return make
