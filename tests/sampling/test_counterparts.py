"""Every scheduler of Diffusers is accepted, or refused with a remedy that works when it is followed to the letter."""

import re

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fk_reward import FKSteeringConfig, steer
from fk_reward.pipelines import FlowMatchSDEScheduler, Solver, stochastic_scheduler
from fk_reward.sampling.stochasticity import (
    NOT_STEERABLE,
    counterpart,
    noise_levels,
    require_matching_steps,
    require_stochastic,
)
from fk_reward.search import FKPopulation
from scripts.scheduler_table import ACCEPTED, DISTILLED

ARGUMENTS = {
    "AmusedScheduler": {"mask_token_id": 1},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
}
NEED_TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
NAMES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith("Flax") and name != "Scheduler"
)
CANNOT = {
    *("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"),  # tokens
    *("VQDiffusionScheduler",),
    *(
        "CMStochasticIterativeScheduler",
        "SCMScheduler",
        "PiflowScheduler",
        "FlowMapEulerDiscreteScheduler",
    ),  # distilled
    *("DDPMWuerstchenScheduler", "IPNDMScheduler", "RePaintScheduler"),  # levels, steps of their own
    *("KarrasVeScheduler", "ScoreSdeVeScheduler"),
    *("HeliosScheduler", "HeliosDMDScheduler", "MiniMaxH3Scheduler", "RFD4ProteinaScheduler"),  # no images
}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
OTHERS = [
    UniPCMultistepScheduler(**FLOW),
    DPMSolverMultistepScheduler(**FLOW),
    DPMSolverSinglestepScheduler(**FLOW),
    FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    DPMSolverMultistepScheduler(solver_order=3),
    DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3),
    CogVideoXDDIMScheduler(snr_shift_scale=1.0),
    EulerDiscreteScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
]


def make(name):
    if name in NEED_TORCHSDE:
        pytest.skip("needs torchsde")
    return getattr(diffusers, name)(**ARGUMENTS.get(name, {}))


def refusal(scheduler):
    """The message, or None where the scheduler is accepted with eta 1 where it takes one."""
    try:
        require_stochastic(scheduler, eta=1.0 if type(scheduler).__name__ == "DDIMScheduler" else None)
    except ValueError as error:
        return str(error)
    return None


def followed(message, scheduler):
    """What every line of code in the message makes of the scheduler."""
    code = re.findall(r"\w+\.from_config\(scheduler\.config[^)]*\)", message)
    assert code, f"no remedy in: {message}"
    names = {**{name: getattr(diffusers, name) for name in NAMES}, "FlowMatchSDEScheduler": FlowMatchSDEScheduler}
    return [eval(line, {**names, "scheduler": scheduler}) for line in code]  # noqa: S307


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_of_diffusers(name):
    scheduler = make(name)
    message = refusal(scheduler)
    if message is None:
        assert name in {row.scheduler.__name__ for row in (*ACCEPTED, *DISTILLED)}
    elif NOT_STEERABLE in message:
        assert name in CANNOT
    elif "Pass eta=1.0" in message:
        require_stochastic(scheduler, eta=1.0)
    else:
        for remedy in followed(message, scheduler):
            assert refusal(remedy) is None
            assert noise_levels(remedy).equal(noise_levels(scheduler))


@pytest.mark.parametrize("scheduler", OTHERS, ids=lambda scheduler: type(scheduler).__name__)
def test_remedies_of_other_settings(scheduler):
    message = refusal(scheduler)
    if ": use solver_order=2" in message:
        assert refusal(type(scheduler).from_config(scheduler.config, solver_order=2)) is None
        return
    for remedy in followed(message, scheduler):
        assert refusal(remedy) is None
        assert noise_levels(remedy).equal(noise_levels(scheduler))
        if remedy.config.get("use_flow_sigmas"):
            assert remedy.config.flow_shift == scheduler.config.get("flow_shift", scheduler.config.get("shift"))
        remedy.set_timesteps(5, **({"mu": 1.15} if scheduler.config.get("use_dynamic_shifting") else {}))


@pytest.mark.parametrize("name", sorted(CANNOT))
def test_what_cannot_be_steered_says_so(name):
    with pytest.raises(ValueError, match="cannot be steered. No stochastic scheduler is known.*num_resamples=0"):
        stochastic_scheduler(make(name))


@pytest.mark.parametrize("cls", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cogvideox_keeps_its_shifted_levels(cls, shift):
    own = cls(snr_shift_scale=shift, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    found = stochastic_scheduler(own)
    assert type(found) is CogVideoXDPMScheduler
    torch.testing.assert_close(found.alphas_cumprod, own.alphas_cumprod)
    assert found.config.snr_shift_scale == shift
    if shift != 1.0:
        with pytest.raises(ValueError, match="other noise levels than the model, which came with CogVideoX"):
            Solver(scheduler=DDIMScheduler, num_inference_steps=3).build(own)


def test_the_loss_of_the_shift_is_noticed():
    """DDIM without it: the alpha-bar of the middle is .24 in place of .07."""
    own = CogVideoXDDIMScheduler(snr_shift_scale=4.0)
    assert not noise_levels(DDIMScheduler.from_config(own.config)).equal(noise_levels(own))


def test_betas_that_were_never_set_are_kept():
    """Diffusers drops them, and Heun's defaults are not DDIM's."""
    own = HeunDiscreteScheduler()
    assert not noise_levels(DDIMScheduler.from_config(own.config)).equal(noise_levels(own))
    torch.testing.assert_close(stochastic_scheduler(own).alphas_cumprod, own.alphas_cumprod)


def test_timesteps_of_another_unit_are_refused():
    """Euler with continuous timesteps asks the network by the logarithm of sigma."""
    with pytest.raises(ValueError, match="cannot be steered"):
        stochastic_scheduler(EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"))


def test_mochi_counts_sigma_the_other_way_round():
    with pytest.raises(ValueError, match="cannot be steered"):
        stochastic_scheduler(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def test_solvers_of_the_right_kind_are_built():
    flow = Solver(scheduler=FlowMatchLCMScheduler, num_inference_steps=4)
    built = flow.build(FlowMatchHeunDiscreteScheduler(shift=3.0))
    assert type(built) is FlowMatchLCMScheduler
    assert built.config.shift == 3.0
    with pytest.raises(ValueError, match="came with EDMEulerScheduler"):
        flow.build(EDMEulerScheduler())


def test_the_renoising_step_is_taken_by_the_class_that_says_so():
    own = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    with pytest.raises(ValueError, match="FlowMatchLCMScheduler"):
        require_stochastic(own)
    lcm = FlowMatchLCMScheduler.from_config(own.config)
    require_stochastic(lcm)
    moved = []
    for scheduler in (own, lcm):
        scheduler.set_timesteps(6)
        sample = torch.ones(2, 1, 2, 2)
        generator = torch.Generator().manual_seed(0)
        moved.append(scheduler.step(sample / 2, scheduler.timesteps[0], sample, generator=generator)[0])
    assert torch.equal(*moved)


@pytest.mark.parametrize("eta", [1.5, 2.0])
def test_more_noise_than_there_is_room_for(eta):
    with pytest.raises(ValueError, match=r"Pass an eta in \(0, 1\]"):
        require_stochastic(DDIMScheduler(), eta=eta)


def test_steps_that_ddim_does_not_reach_are_refused_before_the_first():
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(600)
    sample = torch.zeros(4, 1, 2, 2)
    particle_filter = FKPopulation(FKSteeringConfig(num_particles=4))
    with (
        steer(scheduler, particle_filter, lambda x0: x0.mean((1, 2, 3))),
        pytest.raises(ValueError, match="Use 500 steps"),
    ):
        scheduler.step(sample, scheduler.timesteps[0], sample, eta=1.0)
    for num_steps in (*range(1, 100), 200, 250, 500):
        scheduler.set_timesteps(num_steps)
        require_matching_steps(scheduler)


def test_counterparts_are_written_as_they_are_built():
    own = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    line = str(counterpart(own))
    (built,) = followed(line, own)
    assert dict(built.config) == dict(counterpart(own).build(own).config)
