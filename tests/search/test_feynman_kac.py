"""`FKSteeringConfig`: validation of each field, JSON, scoring steps, and the settings of the public FK code."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward import FKSteeringConfig, steer
from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler
from fk_reward.sampling.steering import _require_prediction
from fk_reward.search import FKPopulation
from fk_reward.search.base import Forecast, forecast
from fk_reward.search.feynman_kac import PAPER, SELECTIONS, config_fields
from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.resampling import RESAMPLERS

FKD_ARGS = {
    "potential_type": "max",
    "lmbda": 10.0,
    "num_particles": 4,
    "adaptive_resampling": False,
    "resample_frequency": 20,
    "resampling_t_start": 20,
    "resampling_t_end": 80,
    "time_steps": 100,
}

configs = st.builds(
    FKSteeringConfig,
    num_particles=st.integers(1, 64),
    potential=st.sampled_from(list(POTENTIALS)),
    reward_weight=st.sampled_from(["constant", "rising"]),
    reward_scale=st.floats(0, 1e6) | st.sampled_from(["auto", "card"]),
    resample_start=st.floats(0, 0.5),
    resample_stop=st.floats(0.5, 1),
    num_resamples=st.integers(0, 30),
    ess_threshold=st.floats(0, 1),
    resampling=st.sampled_from(list(RESAMPLERS)),
    selection=st.sampled_from(SELECTIONS),
    target_ess=st.floats(0.01, 0.99),
)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("num_particles", 0, ValueError),
        ("num_particles", -1, ValueError),
        ("num_particles", 4.0, TypeError),
        ("num_particles", True, TypeError),
        ("num_particles", "4", TypeError),
        ("num_resamples", -1, ValueError),
        ("num_resamples", 2.5, TypeError),
        ("potential", "diff", ValueError),
        ("potential", None, ValueError),
        ("resampling", "bootstrap", ValueError),
        ("selection", "worst", ValueError),
        ("resample_start", -0.1, ValueError),
        ("resample_start", 1.1, ValueError),
        ("resample_start", 0.95, ValueError),  # after resample_stop
        ("resample_start", math.nan, ValueError),
        ("resample_stop", 0.1, ValueError),  # before resample_start
        ("resample_stop", 1.1, ValueError),
        ("resample_stop", None, TypeError),
        ("ess_threshold", -0.1, ValueError),
        ("ess_threshold", 1.5, ValueError),
        ("ess_threshold", "0.5", TypeError),
        ("target_ess", 0.0, ValueError),
        ("target_ess", 1.0, ValueError),
        ("reward_scale", -1.0, ValueError),
        ("reward_scale", math.inf, ValueError),
        ("reward_scale", math.nan, ValueError),
        ("reward_scale", "automatic", TypeError),
        ("reward_weight", "falling", ValueError),
        ("reward_weight", 0.5, TypeError),
        ("reward_weight", None, TypeError),
        ("reward_weight", (0.1, 0.2, 0.3), ValueError),  # of four scoring steps
        ("reward_weight", (), ValueError),
        ("reward_weight", (0.1, 0.2, 0.3, -0.4), ValueError),
        ("reward_weight", (0.1, 0.2, 0.3, math.nan), ValueError),
        ("reward_weight", (0.1, 0.2, 0.3, True), TypeError),
        ("reward_weight", "0.1,0.2,0.3,high", ValueError),
        ("reward_scale", True, TypeError),
    ],
)
def test_a_wrong_value_raises_and_names_the_field(field, value, error):
    with pytest.raises(error, match="resample_start|resample_stop" if field == "resample_start" else field):
        FKSteeringConfig(**{field: value})


def test_every_field_is_validated():
    """An object of no use must be refused by each field, so that a new one cannot go unchecked."""
    for field in config_fields():
        with pytest.raises((TypeError, ValueError)):
            FKSteeringConfig(**{field: object()})


def test_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FKSteeringConfig().num_particles = 8
    with pytest.raises(TypeError):
        FKSteeringConfig(4)


def test_choices_are_listed_in_the_message():
    with pytest.raises(ValueError, match="systematic.*ssp"):
        FKSteeringConfig(resampling="sytematic")


@given(config=configs)
@settings(max_examples=60, deadline=None)
def test_json_round_trip(config):
    assert FKSteeringConfig.from_json(config.to_json()) == config
    assert FKSteeringConfig.from_dict(config.to_dict()) == config


def test_json_file_round_trip(tmp_path):
    config, path = FKSteeringConfig(reward_scale="auto", num_particles=3), tmp_path / "steering.json"
    config.to_json(path)
    assert FKSteeringConfig.from_json(path) == FKSteeringConfig.from_json(str(path)) == config


def test_unknown_key_lists_the_fields():
    with pytest.raises(TypeError, match="num_particle.*num_particles"):
        FKSteeringConfig.from_dict({"num_particle": 4})


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(100, (40, 57, 73, 90)), (50, (20, 28, 37, 45)), (20, (8, 11, 15, 18)), (4, (2,)), (2, (0,)), (1, ())],
)
def test_default_scoring_steps(num_steps, expected):
    assert FKSteeringConfig().scoring_steps(num_steps) == expected


def test_scoring_steps_at_the_ends():
    """The last step adds no noise: nothing is drawn before it."""
    assert FKSteeringConfig(resample_start=0.0, resample_stop=1.0, num_resamples=2).scoring_steps(10) == (0, 8)
    assert FKSteeringConfig(num_resamples=0).scoring_steps(10) == ()
    assert FKSteeringConfig(num_resamples=1, resample_start=0.5).scoring_steps(10) == (5,)
    with pytest.raises(ValueError, match="num_steps"):
        FKSteeringConfig().scoring_steps(0)


@given(config=configs, num_steps=st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_scoring_steps_are_ascending_steps_of_the_trajectory(config, num_steps):
    steps = config.scoring_steps(num_steps)
    assert list(steps) == sorted(set(steps))
    assert all(0 <= step < num_steps - 1 for step in steps)
    assert len(steps) <= config.num_resamples


WEIGHTS = (0.1, 0.2, 0.5, 1.0)
SPACED = {"resample_start": 0.2, "resample_stop": 0.8, "num_resamples": 4}


@pytest.mark.parametrize("given", [WEIGHTS, list(WEIGHTS), "0.1,0.2,0.5,1", "0.1, 0.2, 0.5, 1.0", np.array(WEIGHTS)])
def test_weights_of_the_scoring_steps_as_numbers_or_as_text(given):
    config = FKSteeringConfig(reward_weight=given, **SPACED)
    assert config.reward_weight == WEIGHTS
    assert FKSteeringConfig.from_json(config.to_json()) == config
    assert config.step_weights(10) == {2: 0.1, 4: 0.2, 6: 0.5, 8: 1.0}
    assert config.step_weights(4) == {1: 0.1, 2: 1.0}, "where several fall on one step the last one counts"
    assert hash(config) == hash(FKSteeringConfig(**{"reward_weight": WEIGHTS} | SPACED))


def weights_seen(scheduler, *, config, model_output=0.0):
    """The beta of each scoring step of a run with this scheduler."""
    seen = []

    class Watched(FKPopulation):
        def weigh(self, rewards, *, final=False, step=None, weight=1.0):
            super().weigh(rewards, final=final, step=step, weight=weight)
            seen.append((step, weight))

    generator = torch.Generator().manual_seed(0)
    sample, population = torch.randn(4, 1, 2, 2, generator=generator), Watched(config)
    with steer(scheduler, population, lambda x0: x0.mean(dim=(1, 2, 3))):
        for timestep in scheduler.timesteps:
            scaled = model_output * sample
            sample = scheduler.step(scaled, timestep, sample, generator=generator).prev_sample
    return dict(seen)


def test_rising_weights_are_alpha_bar_where_the_schedule_preserves_the_variance():
    scheduler = DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    config = FKSteeringConfig(reward_weight="rising", ess_threshold=1.0, **SPACED)
    expected = {step: float(scheduler.alphas_cumprod[scheduler.timesteps[step]]) for step in (2, 4, 6, 8)}
    assert weights_seen(scheduler, config=config) == pytest.approx(expected)


def test_rising_weights_of_a_flow_are_those_of_its_own_levels():
    scheduler = FlowMatchSDEScheduler()
    scheduler.set_timesteps(10)
    config = FKSteeringConfig(reward_weight="rising", ess_threshold=1.0, **SPACED)
    sigmas = {step: float(scheduler.sigmas[step]) for step in (2, 4, 6, 8)}
    expected = {step: (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2) for step, sigma in sigmas.items()}
    assert weights_seen(scheduler, config=config) == pytest.approx(expected, abs=1e-5)


def test_weights_as_numbers_are_those_of_their_steps():
    scheduler = DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    config = FKSteeringConfig(reward_weight=WEIGHTS, ess_threshold=1.0, **SPACED)
    assert weights_seen(scheduler, config=config) == {2: 0.1, 4: 0.2, 6: 0.5, 8: 1.0}


def test_rising_weights_in_a_loop_of_ones_own_need_the_signal():
    population = FKSteeringConfig(reward_weight="rising", ess_threshold=1.0).population()
    population.begin(10)
    with pytest.raises(RuntimeError, match="at_signal"):
        population.advance(torch.arange(4.0), step=2)
    population = FKSteeringConfig(reward_weight="rising", reward_scale=2.0, ess_threshold=0.0).population()
    population.begin(10)
    population.at_signal(0.25)
    population.advance(torch.arange(4.0), step=2)
    assert population.log_weights.tolist() == [[0.0, 0.5, 1.0, 1.5]]
    with pytest.raises(RuntimeError, match="at_signal"):  # that of one step is not that of the next
        population.advance(torch.arange(4.0), step=4)
    with pytest.raises(ValueError, match=r"share should be in \[0, 1\]"):
        population.at_signal(1.5)


def test_rising_weights_refuse_a_scheduler_whose_levels_are_not_known():
    class Unknown:
        timesteps = torch.arange(10).flip(0)

        def step(self, model_output, timestep, sample, generator=None):
            return (sample + torch.randn(sample.shape, generator=generator),)

    config = FKSteeringConfig(reward_weight="rising", **SPACED)
    sample, scheduler = torch.zeros(4, 1, 2, 2), Unknown()
    with pytest.raises(ValueError, match="reward_weight='constant'"):
        _require_prediction(scheduler, config.population(), lambda state, denoise: state.sample)
    _require_prediction(
        scheduler, FKSteeringConfig(reward_weight="constant").population(), lambda state, denoise: sample
    )


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({}, True),
        ({"num_particles": 1}, False),
        ({"num_resamples": 0}, False),
        ({"reward_scale": 0.0}, False),
        ({"reward_scale": "auto"}, True),
    ],
)
def test_resamples(settings_, expected):
    assert FKSteeringConfig(**settings_).resamples is expected


@given(data=st.data(), num_steps=st.integers(3, 200))
@settings(max_examples=200, deadline=None)
def test_fkd_args_score_at_the_same_steps(data, num_steps):
    start = data.draw(st.integers(0, num_steps - 2))
    stop = data.draw(st.integers(start, num_steps - 2))
    frequency = data.draw(st.integers(1, num_steps))
    args = FKD_ARGS | {
        "time_steps": num_steps,
        "resampling_t_start": start,
        "resampling_t_end": stop,
        "resample_frequency": frequency,
    }
    config = FKSteeringConfig.from_fkd_args(args)
    assert config.scoring_steps(num_steps) == tuple(range(start, stop + 1, frequency))


@pytest.mark.parametrize(
    ("theirs", "ours"), [("diff", "difference"), ("max", "max"), ("add", "sum"), ("rt", "immediate")]
)
def test_fkd_args_potentials(theirs, ours):
    assert FKSteeringConfig.from_fkd_args(FKD_ARGS | {"potential_type": theirs}).potential == ours


def test_fkd_args_mapping():
    config = FKSteeringConfig.from_fkd_args(FKD_ARGS)
    assert (config.num_particles, config.reward_scale, config.resampling) == (4, 10.0, "multinomial")
    assert config.ess_threshold == 1.0
    assert FKSteeringConfig.from_fkd_args(FKD_ARGS | {"adaptive_resampling": True}).ess_threshold == 0.5
    assert not FKSteeringConfig.from_fkd_args(FKD_ARGS | {"use_smc": False}).resamples


def test_the_paper_has_its_settings_whatever_the_defaults_are():
    assert dataclasses.asdict(PAPER) == {
        "num_particles": 4,
        "potential": "max",
        "reward_weight": "constant",
        "reward_scale": 10.0,
        "resample_start": 0.2,
        "resample_stop": 0.8,
        "num_resamples": 4,
        "ess_threshold": 0.5,
        "resampling": "systematic",
        "selection": "best",
        "diversity_weight": 1.0,
        "target_ess": 0.5,
        "final_particles": None,
        "stop_reward": None,
        "abstain": False,
    }


def test_fkd_args_that_belong_elsewhere_are_left_out_with_a_warning(caplog):
    config = FKSteeringConfig.from_fkd_args(FKD_ARGS | {"guidance_reward_fn": "ImageReward", "metric_to_chase": None})
    assert config == FKSteeringConfig.from_fkd_args(FKD_ARGS)
    assert [record.args[0] for record in caplog.records] == ["guidance_reward_fn"]


@pytest.mark.parametrize(
    "missing", ["num_particles", "lmbda", "time_steps", "resampling_t_start", "resampling_t_end", "resample_frequency"]
)
def test_fkd_args_missing_setting(missing):
    with pytest.raises(ValueError, match=missing):
        FKSteeringConfig.from_fkd_args({name: value for name, value in FKD_ARGS.items() if name != missing})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"potential_type": "mean"}, ValueError, "potential_type"),
        ({"resample_frequency": 0}, ValueError, "resample_frequency"),
        ({"resampling_t_end": 10}, ValueError, "resampling_t_start <= resampling_t_end"),
        ({"resampling_t_end": 100}, ValueError, "time_steps"),
        ({"lambda": 1.0}, TypeError, "lambda"),
        ({"lmbda": -1.0}, ValueError, "reward_scale"),
    ],
)
def test_fkd_args_errors(change, error, message):
    with pytest.raises(error, match=message):
        FKSteeringConfig.from_fkd_args(FKD_ARGS | change)


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
