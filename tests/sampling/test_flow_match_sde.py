"""The stochastic scheduler of flow models: its levels are the model's, its step is Diffusers' SDE-DPM-Solver++."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from fk_reward.pipelines import FlowMatchSDEScheduler, stochastic_scheduler

LEVELS = [
    ({"shift": 3.0}, {"num_inference_steps": 7}),
    ({"shift": 1.0, "shift_terminal": 0.1}, {"num_inference_steps": 7}),
    ({"shift": 3.0, "use_karras_sigmas": True}, {"num_inference_steps": 7}),
    ({"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.4, 0.1]}),
    ({"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.1], "timesteps": [1000.0, 700.0, 100.0]}),  # CogView4
    ({"use_dynamic_shifting": True}, {"num_inference_steps": 7, "mu": 1.15}),
    ({"use_dynamic_shifting": True}, {"sigmas": np.linspace(1.0, 1 / 5, 5), "mu": 0.9}),  # Flux
    ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"num_inference_steps": 7, "mu": 1.15}),
    ({"shift": 1.0}, {"sigmas": np.linspace(1.0, 1 / 5, 5), "mu": 0.9}),  # Flux schnell: mu has no effect
]


@pytest.mark.parametrize(("config", "timesteps"), LEVELS)
def test_levels_are_those_of_the_models_own_scheduler(config, timesteps):
    own = FlowMatchEulerDiscreteScheduler(**config)
    replacement = stochastic_scheduler(own)
    assert isinstance(replacement, FlowMatchSDEScheduler)
    before = dict(replacement.config)
    for scheduler in (own, replacement):
        scheduler.set_timesteps(**timesteps)
    assert torch.equal(own.sigmas, replacement.sigmas)
    assert torch.equal(own.timesteps, replacement.timesteps)
    assert dict(replacement.config) == before


def steps(scheduler, outputs, *, generator):
    """Samples of a run, from the same start, with given model outputs."""
    sample, samples = torch.ones(2, 3, 4, 4) * 0.5, []
    for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
        samples.append(sample)
    return samples


def stock_solver(sigmas, order):
    solver = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=order,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        lower_order_final=True,
    )
    solver.set_timesteps(len(sigmas) - 1)
    solver.sigmas = sigmas.clone()
    solver.set_begin_index(0)
    return solver


@pytest.mark.parametrize("number", range(2))
def test_the_first_step_and_the_last_are_diffusers_own(number):
    """Without a step before, and to the clean sample, second order is first order."""
    scheduler = FlowMatchSDEScheduler()
    scheduler.set_timesteps(sigmas=[0.9, 0.3] if number == 0 else [0.3])
    outputs = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))[: len(scheduler.timesteps)]
    ours = steps(scheduler, outputs, generator=torch.Generator().manual_seed(0))
    stock = steps(stock_solver(scheduler.sigmas, 2), outputs, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours[0], stock[0])


def test_the_second_step_differs_by_the_ratio_of_steps_alone():
    """Diffusers measures both steps in log(alpha / sigma), we in sigma: the correction is scaled by the two ratios."""
    scheduler = FlowMatchSDEScheduler()
    scheduler.set_timesteps(sigmas=[0.9, 0.6, 0.2])
    outputs = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = [
        steps(solver, outputs, generator=torch.Generator().manual_seed(0))[1]
        for solver in (scheduler, stock_solver(scheduler.sigmas, 2), stock_solver(scheduler.sigmas, 1))
    ]
    ours, second, first = found
    log_snr = [np.log((1 - sigma) / sigma) for sigma in (0.9, 0.6, 0.2)]
    stock_ratio = (log_snr[2] - log_snr[1]) / (log_snr[1] - log_snr[0])
    our_ratio = (0.6 - 0.2) / (0.9 - 0.6)
    torch.testing.assert_close(ours - first, (second - first) * (our_ratio / stock_ratio), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(second, first)


def test_a_new_run_forgets_the_last_one():
    scheduler = FlowMatchSDEScheduler(shift=3.0)
    outputs = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    runs = []
    for _ in range(2):
        scheduler.set_timesteps(4)
        runs.append(steps(scheduler, outputs, generator=torch.Generator().manual_seed(0))[-1])
    assert torch.equal(*runs)


def test_a_sample_of_pure_noise_is_drawn_anew():
    """At sigma = 1 nothing of the sample is kept but what the model reads off it: no infinity comes of log(0)."""
    scheduler = FlowMatchSDEScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    sample, output = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 1.0)
    generator = torch.Generator().manual_seed(0)
    moved = scheduler.step(output, scheduler.timesteps[0], sample, generator=generator, return_dict=False)[0]
    noise = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved, 0.5 * 2.0 + 0.5 * noise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sample_keeps_the_precision_of_the_model(dtype):
    scheduler = FlowMatchSDEScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    sample = torch.ones(1, 1, 2, 2, dtype=dtype)
    assert scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.dtype == dtype


def test_it_is_saved_and_loaded(tmp_path):
    FlowMatchSDEScheduler(shift=3.0).save_pretrained(tmp_path)
    assert FlowMatchSDEScheduler.from_pretrained(tmp_path).config.shift == 3.0
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path).config.shift == 3.0
