"""The stochastic schedulers that can be steered, each with its prediction types, as parameters for the tests."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchLCMScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from fk_reward.pipelines import FlowMatchGLASSScheduler, FlowMatchSDEScheduler

SDE = {"algorithm_type": "sde-dpmsolver++"}
FAMILIES = {
    # name: (class, config, prediction types, arguments of step)
    "ddim": (DDIMScheduler, {"clip_sample": False}, ("epsilon", "v_prediction", "sample"), {"eta": 1.0}),
    "ddim-clip": (DDIMScheduler, {"clip_sample": True, "clip_sample_range": 0.7}, ("epsilon",), {"eta": 0.5}),
    "ddim-threshold": (DDIMScheduler, {"thresholding": True, "clip_sample": False}, ("epsilon",), {"eta": 1.0}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}, ("epsilon", "v_prediction", "sample"), {}),
    "ddpm-clip": (DDPMScheduler, {"clip_sample": True}, ("epsilon",), {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, {}, ("epsilon", "v_prediction"), {}),
    "kdpm2-ancestral": (KDPM2AncestralDiscreteScheduler, {}, ("epsilon", "v_prediction"), {}),
    "dpm-sde-1": (DPMSolverMultistepScheduler, {**SDE, "solver_order": 1}, ("epsilon",), {}),
    "dpm-sde-2": (
        DPMSolverMultistepScheduler,
        {**SDE, "solver_order": 2},
        ("epsilon", "v_prediction", "sample"),
        {},
    ),
    "dpm-sde-karras": (DPMSolverMultistepScheduler, {**SDE, "use_karras_sigmas": True}, ("epsilon",), {}),
    "dpm-sde-flow": (
        DPMSolverMultistepScheduler,
        {**SDE, "use_flow_sigmas": True, "flow_shift": 3.0},
        ("flow_prediction",),
        {},
    ),
    "dpm-sde-noise": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ("epsilon", "v_prediction"),
        {},
    ),
    "dpm-singlestep-1": (DPMSolverSinglestepScheduler, {**SDE, "solver_order": 1}, ("epsilon",), {}),
    "dpm-singlestep-2": (
        DPMSolverSinglestepScheduler,
        {**SDE, "solver_order": 2},
        ("epsilon", "v_prediction", "sample"),
        {},
    ),
    "dpm-singlestep-3": (DPMSolverSinglestepScheduler, {**SDE, "solver_order": 3}, ("epsilon",), {}),
    "lcm": (LCMScheduler, {"clip_sample": False}, ("epsilon", "v_prediction", "sample"), {}),
    "tcd": (TCDScheduler, {}, ("epsilon", "v_prediction", "sample"), {"eta": 0.5}),
    "edm-sde-1": (EDMDPMSolverMultistepScheduler, {**SDE, "solver_order": 1}, ("epsilon", "v_prediction"), {}),
    "edm-sde-2": (EDMDPMSolverMultistepScheduler, {**SDE, "solver_order": 2}, ("epsilon",), {}),
    "flow-sde": (FlowMatchSDEScheduler, {"shift": 3.0}, (None,), {}),
    "flow-glass": (FlowMatchGLASSScheduler, {"shift": 3.0, "num_inner_steps": 2}, (None,), {}),
    "flow-lcm": (FlowMatchLCMScheduler, {"shift": 3.0}, (None,), {}),
}
CASES = [
    pytest.param(name, kind, id=f"{name}-{kind or 'flow'}")
    for name, (_, _, kinds, _) in FAMILIES.items()
    for kind in kinds
]


def make_scheduler(name, kind, num_steps=10):
    """A scheduler of the case with its timesteps set, and the keyword arguments of its step."""
    cls, config, _, step_arguments = FAMILIES[name]
    scheduler = cls(**config, **({"prediction_type": kind} if kind else {}))
    scheduler.set_timesteps(num_steps)
    return scheduler, dict(step_arguments)


def toy_model(sample, timestep):
    """Stands in for a denoiser: each row depends on itself alone, smoothly."""
    return torch.tanh(0.8 * sample) + 1e-4 * float(timestep) * torch.cos(sample)


def initial_sample(scheduler, batch_size, seed=0):
    noise = torch.randn(batch_size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def scaled_input(scheduler, sample, timestep):
    return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
