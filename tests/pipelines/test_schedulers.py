"""Schedulers of whole pipelines: solvers, stand-ins for deterministic ones, and a scheduler that a run leaves alone."""

from __future__ import annotations

import copy
import functools
import inspect
import logging

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)

from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import SOLVERS, FlowMatchSDEScheduler, Solver, stochastic_scheduler
from fk_reward.sampling.stochasticity import require_stochastic
from tests import tiny
from tests.pipelines import outcome_table
from tests.pipelines.calls import BrightnessReward, constant, generator, steered
from tests.tiny.families import FAMILIES

PROMPT = "a red circle"
FLOW_FAMILIES = [
    name
    for name, line in outcome_table.documented_rows(outcome_table.PAGE.read_text(encoding="utf-8")).items()
    if "`FlowMatch" in line and name != "VisualClozePipeline"  # runs two pipelines of its own
]
"""As the table says, which `test_outcomes` compares with each pipeline: to build all of them here takes seconds."""


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
    assert type(own.scheduler) is FlowMatchEulerDiscreteScheduler
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
    with pytest.raises(ValueError, match="best of N, with search='best-of-n' or num_resamples=0"):
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
    from fk_reward import FKSteeringConfig, steer
    from fk_reward.search import FKPopulation

    scheduler = DDPMWuerstchenScheduler()
    scheduler.set_timesteps(3)
    sample = torch.zeros(2, 1, 2, 2)
    with steer(scheduler, FKPopulation(FKSteeringConfig(num_particles=2, num_resamples=0)), lambda x0: x0.sum()):
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


BY_HAND = {
    "ddim-50": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}, 50, {"eta": 1.0}),
    "sde-dpmsolver++-20": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        20,
        {},
    ),
    "lcm-4": (LCMScheduler, {}, 4, {"guidance_scale": 1.0}),
    "tcd-8": (TCDScheduler, {}, 8, {"eta": 0.3, "guidance_scale": 0.0}),
}
MAKERS = {"sd": tiny.make_sd, "sdxl": tiny.make_sdxl}


def wrap(pipe, **options):
    return FKSteeringPipeline(pipe, reward=options.pop("reward", constant), **options)


def check_equals_stock(family, name, solver=None):
    """With the steps of the preset where it has few, else with as few as a test can wait for."""
    scheduler, config, num_steps, arguments = BY_HAND[name]
    fewer = {"num_inference_steps": 6} if num_steps > 8 else {}
    num_steps = fewer.get("num_inference_steps", num_steps)
    wrapped = wrap(MAKERS[family](), solver=solver or name)
    out = wrapped(PROMPT, num_particles=1, generator=generator(), output_type="np", **fewer)
    stock = MAKERS[family]()
    stock.scheduler = scheduler.from_config(stock.scheduler.config, **config)
    images = stock(PROMPT, num_inference_steps=num_steps, generator=generator(), output_type="np", **arguments).images
    assert np.array_equal(out.images, images)
    assert out.trace.num_steps == num_steps


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("family", MAKERS)
def test_one_particle_is_the_stock_image_of_the_scheduler_built_by_hand(family, name):
    check_equals_stock(family, name)


def test_another_schedule_of_noise_levels_is_noticed():
    config = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": False}
    with pytest.raises(AssertionError):
        check_equals_stock(
            "sd",
            "sde-dpmsolver++-20",
            Solver(scheduler=DPMSolverMultistepScheduler, num_inference_steps=20, config=config),
        )


@pytest.mark.parametrize("name", SOLVERS)
def test_every_preset_adds_noise_and_states_its_steps(name):
    solver = SOLVERS[name]
    is_flow = name.startswith(("glass", "schnell"))
    built = solver.build(FlowMatchEulerDiscreteScheduler() if is_flow else EulerDiscreteScheduler())
    assert name.endswith(f"-{solver.num_inference_steps}")
    if "-ode-" in name:
        with pytest.raises(ValueError, match="deterministic"):
            require_stochastic(built)
    else:
        require_stochastic(built, eta=solver.eta)


def test_a_solver_steers():
    wrapped = wrap(tiny.make_sd(), reward=BrightnessReward(), solver="sde-dpmsolver++-20")
    arguments = {"num_particles": 6, "num_images_per_prompt": 6, "num_inference_steps": 8}
    plain = wrapped(PROMPT, num_resamples=0, generator=generator(), **arguments)
    out = wrapped(PROMPT, reward_scale=1e4, ess_threshold=1.0, generator=generator(), **arguments)
    assert out.trace.num_steps == 8
    assert out.rewards.mean() > plain.rewards.mean()


def test_arguments_of_the_call_win(monkeypatch):
    wrapped = wrap(tiny.make_sd(), solver="tcd-4")
    seen = []
    step = TCDScheduler.step

    @functools.wraps(step)
    def watched(*args, **kwargs):
        seen.append(inspect.signature(step).bind(*args, **kwargs).arguments["eta"])
        return step(*args, **kwargs)

    monkeypatch.setattr(TCDScheduler, "step", watched)
    out = wrapped(PROMPT, num_particles=1, num_inference_steps=6, eta=0.7, guidance_scale=5.0)
    assert out.trace.num_steps == 6
    assert out.trace.num_model_rows == 12, "guidance doubles the rows"
    assert seen == [0.7] * 6
    assert wrapped(PROMPT, num_particles=1).trace.num_model_rows == 4
    assert seen[6:] == [0.3] * 4
    nothing = {"num_inference_steps": None, "eta": None, "guidance_scale": None}
    assert wrapped(PROMPT, num_particles=1, **nothing).trace.num_model_rows == 4
    assert seen[10:] == [0.3] * 4


def test_a_model_that_reads_its_guidance_keeps_the_default_of_the_pipeline():
    wrapped = wrap(tiny.make_sd(), solver="lcm-4")
    assert wrapped.solver.arguments(wrapped.pipe)["guidance_scale"] == 1.0
    wrapped.unet.register_to_config(time_cond_proj_dim=8)
    assert wrapped.solver.arguments(wrapped.pipe) == {"num_inference_steps": 4}


def test_solvers_replace_each_other_and_end():
    pipe = tiny.make_sd()
    own, config = pipe.scheduler, dict(pipe.scheduler.config)
    wrapped = wrap(
        pipe,
        solver=Solver(scheduler=DDIMScheduler, num_inference_steps=3, config={"timestep_spacing": "trailing"}, eta=1.0),
    )
    assert wrapped.scheduler.config.timestep_spacing == "trailing"
    wrapped.solver = "lcm-8"
    assert isinstance(wrapped.scheduler, LCMScheduler)
    assert wrapped.scheduler.config.timestep_spacing == config["timestep_spacing"], "of the model, not of the last one"
    wrapped.solver = None
    assert wrapped.scheduler is own
    assert dict(own.config) == config
    wrapped.solver = "tcd-4"
    mine = LCMScheduler.from_config(own.config)
    wrapped.scheduler = mine
    assert wrapped.solver is None
    assert pipe.scheduler is mine


def test_a_scheduler_that_the_wrapped_pipeline_is_given_ends_the_solver():
    wrapped = wrap(tiny.make_sd(), solver="ddim-100")
    wrapped.pipe.scheduler = mine = LCMScheduler.from_config(wrapped.scheduler.config)
    assert wrapped(PROMPT).trace.num_steps == 50, "the pipeline's own"
    wrapped.solver = "tcd-4"
    wrapped.solver = None
    assert wrapped.scheduler is mine


def test_another_pipeline_in_its_place():
    first, second = tiny.make_sd(), tiny.make_sdxl()
    own, others = first.scheduler, second.scheduler
    wrapped = wrap(first, solver="lcm-4")
    wrapped.pipe = second
    assert first.scheduler is own
    assert wrapped.solver is None
    wrapped.solver = "tcd-4"
    wrapped.solver = None
    assert second.scheduler is others
    with pytest.raises(TypeError, match="should be a Diffusers pipeline"):
        wrapped.pipe = second.unet


def test_from_pretrained(tmp_path):
    tiny.make_sdxl().save_pretrained(tmp_path)
    wrapped = FKSteeringPipeline.from_pretrained(tmp_path, reward=constant, solver="sde-dpmsolver++-25")
    assert isinstance(wrapped.scheduler, DPMSolverMultistepScheduler)
    assert wrapped.scheduler.config.steps_offset == 1, "of the repository"
    wrapped.solver = None
    assert isinstance(wrapped.scheduler, DDIMScheduler)


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        ("ddim100", ValueError, "Did you mean 'ddim-100'"),
        ("heun", ValueError, "Known are 'ddim-50'"),
        (DDIMScheduler, TypeError, "should be a name"),
    ],
)
def test_wrong_solvers(solver, error, message):
    with pytest.raises(error, match=message):
        wrap(tiny.make_sd(), solver=solver)


@pytest.mark.parametrize("make", [tiny.make_sd3, tiny.make_flux])
def test_glass_is_a_solver_of_flow_models(make):
    own = make(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    wrapped = wrap(own, reward=BrightnessReward(), solver="glass-28")
    out = wrapped(PROMPT, num_particles=2, num_inference_steps=8, height=16, width=16, generator=generator())
    assert out.trace.num_model_calls in (8, 16)  # SD3 has guidance in the batch
    assert [step.step for step in out.trace.steps] == [0, 8]
    with pytest.raises(ValueError, match="came with EulerDiscreteScheduler"):
        SOLVERS["glass-28"].build(EulerDiscreteScheduler())


@pytest.mark.parametrize("make", [tiny.make_sd3, tiny.make_flux])
@pytest.mark.parametrize("name", [name for name in SOLVERS if not name.startswith(("glass", "schnell"))])
def test_flow_matching_is_told_what_to_do(make, name):
    with pytest.raises(ValueError, match="came with FlowMatchEulerDiscreteScheduler. Leave solver out"):
        wrap(make(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)), solver=name)


def test_edm_is_told_what_to_do():
    with pytest.raises(ValueError, match="came with EDMEulerScheduler"):
        SOLVERS["ddim-100"].build(EDMEulerScheduler())


def test_settings_that_diffusers_would_ignore_are_refused():
    with pytest.raises(ValueError, match="DDIMScheduler has no setting 'algorithm_type'"):
        Solver(scheduler=DDIMScheduler, num_inference_steps=3, config={"algorithm_type": "sde-dpmsolver++"})
    with pytest.raises(ValueError, match="LCMScheduler takes no eta"):
        Solver(scheduler=LCMScheduler, num_inference_steps=3, eta=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Solver(scheduler=LCMScheduler, num_inference_steps=0)


def test_a_deterministic_solver_is_refused_when_called():
    wrapped = wrap(tiny.make_sd(), solver=Solver(scheduler=DDIMScheduler, num_inference_steps=3, eta=0.0))
    with pytest.raises(ValueError, match="Pass eta=1.0"):
        wrapped(PROMPT)


def test_the_same_seed_gives_the_same_result_with_the_solver_in_the_constructor_or_later():
    first = wrap(tiny.make_sd(), solver="lcm-4")
    later = wrap(tiny.make_sd())
    later.solver = "lcm-4"
    images = [p(PROMPT, generator=generator(), output_type="pt").images for p in (first, later)]
    assert torch.equal(*images)
