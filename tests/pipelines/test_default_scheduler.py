"""The scheduler that stands in for a deterministic one, in whole pipelines; a run leaves no trace in a scheduler."""

import copy
import logging

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
)

from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import FlowMatchSDEScheduler, stochastic_scheduler
from tests import tiny
from tests.pipelines.calls import constant, generator, steered
from tests.tiny.families import FAMILIES

PROMPT = "a red circle"
FLOW_FAMILIES = [
    name
    for name, family in FAMILIES.items()
    if name != "VisualClozePipeline"  # runs two pipelines of its own
    and type(getattr(family.build(), "scheduler", None)) is FlowMatchEulerDiscreteScheduler
]


def levels_of_a_call(pipe, call):
    """Sigmas and timesteps that the scheduler had at its first step."""
    seen, step = [], pipe.scheduler.step

    def watched(*args, **kwargs):
        seen.append((pipe.scheduler.sigmas.clone(), pipe.scheduler.timesteps.clone()))
        return step(*args, **kwargs)

    pipe.scheduler.step = watched
    pipe(num_inference_steps=4, generator=generator(), **call)
    return seen[0]


def test_there_are_flow_families():
    assert {"StableDiffusion3Pipeline", "FluxPipeline"} <= set(FLOW_FAMILIES)
    assert len(FLOW_FAMILIES) >= 8


@pytest.mark.parametrize("name", FLOW_FAMILIES)
def test_flow_pipelines_run_the_stand_in_at_their_own_levels(name):
    """Most of them pass sigmas, which Diffusers' own stochastic solver does not take."""
    family = FAMILIES[name]
    call = family.call_arguments([PROMPT])
    own, replaced = family.build(), family.build()
    replaced.scheduler = stochastic_scheduler(replaced.scheduler)
    for ours, theirs in zip(levels_of_a_call(replaced, call), levels_of_a_call(own, call), strict=True):
        assert torch.equal(ours, theirs)


def test_the_replacement_is_said_once_as_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        stochastic_scheduler(EulerDiscreteScheduler())
        stochastic_scheduler(DDPMScheduler())
    (record,) = [record for record in caplog.records if record.name.startswith("fk_reward")]
    message = record.getMessage()
    assert record.levelno == logging.WARNING
    assert "EulerDiscreteScheduler cannot be steered" in message
    assert "replaced by DDIMScheduler.from_config(scheduler.config" in message
    assert "pass scheduler=... to from_pretrained or write pipe.scheduler" in message


def test_from_pretrained_installs_the_flow_sde_and_it_survives_saving(tmp_path):
    tiny.make_sd3(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(tmp_path / "own")
    wrapped = FKSteeringPipeline.from_pretrained(tmp_path / "own", reward=constant)
    assert type(wrapped.scheduler) is FlowMatchSDEScheduler
    assert wrapped.scheduler.config.shift == 3.0
    wrapped.save_pretrained(tmp_path / "saved")
    again = FKSteeringPipeline.from_pretrained(tmp_path / "saved", reward=constant)
    assert type(again.scheduler) is FlowMatchSDEScheduler


def test_a_scheduler_without_a_counterpart_is_kept_and_best_of_n_runs_on_it(tmp_path, caplog):
    pipe = tiny.make_sd(scheduler=IPNDMScheduler())
    pipe.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        wrapped = FKSteeringPipeline.from_pretrained(tmp_path, reward=constant)
    assert "IPNDMScheduler cannot be steered" in caplog.text
    assert type(wrapped.scheduler) is IPNDMScheduler
    with pytest.raises(ValueError, match="best of N, with num_resamples=0"):
        wrapped(PROMPT, num_inference_steps=3)
    out = wrapped(PROMPT, num_particles=3, num_resamples=0, num_inference_steps=3, generator=generator())
    assert len(out.images) == 1


DETERMINISTIC = {
    "PNDM": (tiny.make_sd, PNDMScheduler(skip_prk_steps=True)),
    "Euler": (tiny.make_sdxl, EulerDiscreteScheduler()),
    "flow": (tiny.make_sd3, FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "renoising": (tiny.make_flux, FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_best_of_n_is_n_plain_images_on_any_scheduler(name):
    make, scheduler = DETERMINISTIC[name]
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    wrapped = steered(make(scheduler=copy.deepcopy(scheduler)), constant)
    out = wrapped(PROMPT, num_particles=3, num_resamples=0, num_images_per_prompt=3, generator=generator(), **arguments)
    torch.manual_seed(5)
    stock = make(scheduler=copy.deepcopy(scheduler))
    if name != "renoising":  # draws from the global generator in the stock pipeline
        images = stock(PROMPT, num_images_per_prompt=3, generator=generator(), **arguments).images
        assert torch.equal(out.images, images)
    with pytest.raises(ValueError, match="Use "):
        wrapped(PROMPT, num_particles=3, **arguments)


def test_unknown_steps_run_where_nothing_is_resampled():
    """Signatures that are not known here: the loop of best of N passes them on."""
    from fk_reward import FKSteeringConfig, ParticleFilter, steer

    scheduler = DDPMWuerstchenScheduler()
    scheduler.set_timesteps(3)
    sample = torch.zeros(2, 1, 2, 2)
    with steer(scheduler, ParticleFilter(FKSteeringConfig(num_particles=2, num_resamples=0)), lambda x0: x0.sum()):
        for timestep in scheduler.timesteps[:-1]:
            sample = scheduler.step(sample, timestep.expand(2), sample).prev_sample
    assert sample.isfinite().all()


def everything(scheduler):
    """All that a scheduler holds, copied; its config is attributes and items."""
    return copy.deepcopy({**vars(scheduler), "config attributes": dict(vars(scheduler.config))})


def check_equal(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        equal = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        assert equal, name


FLOW_SOLVER = {
    "algorithm_type": "sde-dpmsolver++",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
}
LEFT_ALONE = {
    "mu writes flow_shift": (tiny.make_flux, DPMSolverMultistepScheduler(**FLOW_SOLVER)),
    "an odd number of steps writes lower_order_final": (
        tiny.make_sd,
        DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", lower_order_final=False),
    ),
    "flow": (tiny.make_sd3, FlowMatchSDEScheduler(shift=3.0)),
    "ddpm": (tiny.make_sd, DDPMScheduler()),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_scheduler_is_as_before_after_a_run(name):
    make, scheduler = LEFT_ALONE[name]
    pipe = make(scheduler=copy.deepcopy(scheduler))
    before = everything(pipe.scheduler)
    wrapped = steered(pipe, constant)
    first = wrapped(PROMPT, num_inference_steps=3, num_particles=2, generator=generator(), output_type="pt")
    check_equal(before, everything(pipe.scheduler))
    again = wrapped(PROMPT, num_inference_steps=3, num_particles=2, generator=generator(), output_type="pt")
    assert torch.equal(first.images, again.images)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_scheduler_is_as_before_after_an_error(name):
    make, scheduler = LEFT_ALONE[name]
    pipe = make(scheduler=copy.deepcopy(scheduler))
    before = everything(pipe.scheduler)

    def broken(images, prompts):
        raise KeyError("no such reward")

    with pytest.raises(KeyError, match="no such reward"):
        steered(pipe, broken)(PROMPT, num_inference_steps=5, num_particles=2, generator=generator())
    check_equal(before, everything(pipe.scheduler))
