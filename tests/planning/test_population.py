"""The particles of a call in each of its steps, against what a filter and a scheduler do."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward import FKSteeringConfig, steer
from fk_reward.search import FKPopulation
from fk_reward.search.base import Forecast, forecast


def run(config, num_steps):
    """What really goes through the denoiser and the reward, in a loop with a scheduler and no model."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(config.num_particles, 1, 2, 2, generator=generator)
    steps, scorings = [], []

    def score(x0_pred):
        scorings.append(len(x0_pred))
        return x0_pred.mean(dim=(1, 2, 3))

    with steer(scheduler, FKPopulation(config), score):
        for timestep in scheduler.timesteps:
            steps.append(len(sample))
            noise = torch.zeros_like(sample)
            sample = scheduler.step(noise, timestep, sample, eta=1.0, generator=generator).prev_sample
    return Forecast(tuple(steps), tuple(scorings), len(sample))


@settings(max_examples=30, deadline=None)
@given(
    num_steps=st.integers(2, 12),  # a trajectory of one step has no scoring step
    num_particles=st.integers(1, 9),
    num_resamples=st.integers(0, 5),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    funnel=st.booleans(),
)
def test_as_in_a_real_loop(num_steps, num_particles, num_resamples, window, funnel):
    config = FKSteeringConfig(
        num_particles=num_particles,
        num_resamples=num_resamples,
        resample_start=window[0],
        resample_stop=window[1],
        final_particles=1 if funnel and num_particles > 1 and num_resamples else None,
    )
    assert forecast(config, num_steps) == run(config, num_steps)


def test_a_window_elsewhere_is_noticed():
    early = FKSteeringConfig(num_particles=8, final_particles=2, resample_stop=0.4)
    late = FKSteeringConfig(num_particles=8, final_particles=2, resample_start=0.6)
    assert sum(forecast(early, 10).steps) < sum(forecast(late, 10).steps)
    with pytest.raises(AssertionError):
        assert forecast(early, 10) == run(late, 10)


def test_stop_reward_scores_at_most_so_much():
    config = FKSteeringConfig(stop_reward=-100.0)
    most, real = forecast(config, 10), run(config, 10)
    assert len(real.scorings) == 1
    assert real.num_scored < most.num_scored == forecast(FKSteeringConfig(), 10).num_scored
