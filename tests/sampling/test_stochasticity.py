"""Every scheduler of Diffusers is accepted, or refused with a remedy that works when it is followed to the letter."""

import itertools
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
    CONSISTENCY_SAMPLERS,
    NOT_STEERABLE,
    counterpart,
    noise_levels,
    require_matching_steps,
    require_stochastic,
)
from fk_reward.sampling.x0_prediction import X0_PREDICTIONS, predict_x0
from fk_reward.search import FKPopulation
from scripts import scheduler_table
from scripts.scheduler_table import ACCEPTED, DISTILLED, MODE, REFUSED, SPREAD, exact_output, label, posterior_mean

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


PAGE = scheduler_table.PAGE.read_text(encoding="utf-8")
CASES = [
    pytest.param(row, kind, id=f"{row.scheduler.__name__}-{number}-{kind}")
    for number, row in enumerate(ACCEPTED)
    for kind in row.kinds
]
FEW = 20_000  # samples: standard errors of 0.5 % of the spread and 0.35 % of the mass


def documented(row, kind):
    """Errors of the spread in the docs, as fractions, one for each number of steps."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(label(row, kind) + " ")]
    return [float(number) / 100 for number in re.findall(r"([+-][\d.]+|[+-]nan) %", line)]


def keeps_the_law(errors):
    """At most 3 % at 50 steps, or an error that falls with the number of steps to at most 10 % at 200."""
    few, some, many = map(abs, errors)
    return some <= 0.03 or (many < some and many <= 0.1)


def test_the_posterior_mean_is_that_of_the_mixture():
    """Against the integral over a fine grid."""
    x0 = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    prior = sum(torch.exp(-((x0 - mode) ** 2) / (2 * SPREAD**2)) for mode in (-MODE, MODE))
    for alpha, sigma in ((0.1, 0.99), (0.6, 0.8), (0.95, 0.3), (1.0, 3.0)):
        for sample in (-2.5, -0.1, 0.0, 1.7):
            weights = prior * torch.exp(-((sample - alpha * x0) ** 2) / (2 * sigma**2))
            expected = (weights * x0).sum() / weights.sum()
            found = posterior_mean(torch.tensor(sample, dtype=torch.float64), alpha, sigma)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_accepted_schedulers_keep_the_law(row, kind):
    require_stochastic(row.build(kind), eta=row.step.get("eta"))
    assert keeps_the_law(documented(row, kind))


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_the_docs_say_what_is_measured(row, kind):
    error, mass = scheduler_table.law(row, kind, 20, size=FEW)
    assert error == pytest.approx(documented(row, kind)[0], abs=0.02)
    assert mass == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("row", [row for row in ACCEPTED if row.kinds == (None,)])
def test_the_default_of_flow_models_at_fifty_steps(row):
    error, _ = scheduler_table.law(row, None, 50, size=FEW)
    assert abs(error) < 0.04
    assert error == pytest.approx(documented(row, None)[1], abs=0.015)


@pytest.mark.parametrize("row", REFUSED)
def test_what_does_not_is_refused(row):
    (kind,) = row.kinds
    with pytest.raises(ValueError, match=re.escape(row.scheduler.__name__)):
        require_stochastic(row.build(kind))


def test_noise_added_to_a_predicted_mean_fails_the_same_test():
    """The saboteur: right in its first two moments at every level, and wrong within a mode however many the steps."""
    renoising = REFUSED[0]
    errors = [scheduler_table.law(renoising, None, num_steps, size=FEW)[0] for num_steps in (20, 50, 200)]
    assert not keeps_the_law(errors)
    assert errors == pytest.approx(documented(renoising, None), abs=0.02)


@pytest.mark.parametrize("row", DISTILLED)
def test_consistency_samplers_are_chosen_by_name(row):
    assert row.scheduler.__name__ in CONSISTENCY_SAMPLERS
    for kind in row.kinds:
        require_stochastic(row.build(kind), eta=row.step.get("eta"))
        assert len(documented(row, kind)) == 3


def test_the_tables_name_every_scheduler_that_can_be_read():
    named = {row.scheduler.__name__ for row in (*ACCEPTED, *DISTILLED, *REFUSED)}
    assert named == set(X0_PREDICTIONS)
    lines = {
        line for rows in (ACCEPTED, DISTILLED, REFUSED) for row in rows for line in (label(row, k) for k in row.kinds)
    }
    in_page = {match for match in re.findall(r"^(\| `\w+` \|.*?\| \w+ \|) [+-]", PAGE, flags=re.MULTILINE)}
    assert in_page == lines


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_predict_x0_is_the_exact_denoiser(row, kind):
    """At every step, up to the rounding of timesteps to whole numbers (Karras levels, flow levels of DPM-Solver)."""
    rounded = any(row.config.get(name) for name in ("use_karras_sigmas", "use_flow_sigmas", "use_lu_lambdas"))
    worst = max(float((found - exact).abs().max()) for found, exact in _predictions(row, kind))
    assert worst < (0.2 if rounded else 1e-2)


def _predictions(row, kind):
    """x0_pred, and the posterior mean at the level of the timestep."""
    for scheduler, output, timestep, sample in scheduler_table.trajectory(row, kind, 20, size=512):
        if output is sample:  # the end
            return
        scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        alpha, sigma = scheduler_table.training_level(scheduler, timestep)
        found = predict_x0(scheduler, output, timestep, sample)
        seen = scale(sample, timestep)
        if row.scheduler.__name__.startswith("EDM"):
            seen = seen * (sigma**2 + scheduler.config.sigma_data**2) ** 0.5
        yield found, posterior_mean(seen, alpha, sigma)


def test_a_wrong_prediction_type_fails_the_same_check():
    row = ACCEPTED[0]
    steps = scheduler_table.trajectory(row, "v_prediction", 20, size=64)
    scheduler, output, timestep, sample = next(itertools.islice(steps, 10, None))
    scheduler.register_to_config(prediction_type="epsilon")
    exact = posterior_mean(sample, *scheduler_table.training_level(scheduler, timestep))
    assert float((predict_x0(scheduler, output, timestep, sample) - exact).abs().max()) > 0.05
    assert exact_output(row.build("sample"), sample, timestep).equal(exact)
