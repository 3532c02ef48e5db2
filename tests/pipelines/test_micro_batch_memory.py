"""The denoiser's memory: 64 particles, 8 at a time, against 8 particles, on the UNet in the package."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from fk_reward import BatchSizes
from fk_reward.models import resolve_model
from fk_reward.pipelines.batching import MicroBatches
from fk_reward.planning.live_bytes import LiveBytes


@pytest.fixture(scope="module")
def unet():
    return UNet2DConditionModel.from_pretrained(resolve_model("shapes-sd"), subfolder="unet")


def peak(unet, num_particles, particle_batch_size=None):
    """Peak bytes of one forward pass with guidance, beyond its weights and inputs."""
    rows = 2 * num_particles
    sample, states = torch.zeros(rows, 8, 8, 8), torch.zeros(rows, 16, 128)
    sizes = BatchSizes(particle_batch_size=particle_batch_size)
    batches = MicroBatches(sizes, num_particles=lambda: num_particles, found={})
    with torch.no_grad(), batches.splitting(SimpleNamespace(unet=unet)), LiveBytes() as memory:
        unet(sample, torch.tensor(500), encoder_hidden_states=states)
    return memory.peak


def test_64_particles_fit_where_8_do(unet):
    small = peak(unet, 8)
    assert peak(unet, 64, particle_batch_size=8) < 1.3 * small
    assert peak(unet, 64) > 4 * small  # saboteur: undivided
