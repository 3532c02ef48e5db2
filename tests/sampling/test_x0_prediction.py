"""x0_pred against what the schedulers report, and against the exact inverse of the noising process."""

import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fk_reward.sampling.x0_prediction import (
    DETERMINISTIC_X0_PREDICTIONS,
    X0_PREDICTIONS,
    predict_x0,
    predicts_x0,
    scheduler_name,
    signal_share,
)
from tests.sampling.scheduler_cases import CASES, FAMILIES, initial_sample, make_scheduler, scaled_input, toy_model

REPORTING = [case for case in CASES if case.values[0].split("-")[0] in ("ddim", "ddpm", "euler", "kdpm2", "lcm", "tcd")]


def steps(name, kind):
    """Run the loop; yield (scheduler, model output, timestep, sample, x0_pred, output of step)."""
    scheduler, arguments = make_scheduler(name, kind)
    sample = initial_sample(scheduler, 2)
    generator = torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        model_output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
        x0_pred = predict_x0(scheduler, model_output, timestep, sample)
        out = scheduler.step(model_output, timestep, sample, generator=generator, **arguments)
        yield scheduler, model_output, timestep, sample, x0_pred, out
        sample = out.prev_sample


@pytest.mark.parametrize(("name", "kind"), [c for c in REPORTING if c.values[0].split("-")[0] not in ("lcm", "tcd")])
def test_equals_pred_original_sample_at_every_step(name, kind):
    compared = 0
    for *_, x0_pred, out in steps(name, kind):
        torch.testing.assert_close(x0_pred, out.pred_original_sample, rtol=0, atol=0)
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_lcm_denoised_is_x0_pred_behind_its_boundary_condition(kind):
    for scheduler, _, timestep, sample, x0_pred, out in steps("lcm", kind):
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        torch.testing.assert_close(c_out * x0_pred + c_skip * sample, out.denoised)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_tcd_noised_sample_follows_from_x0_pred(kind):
    for scheduler, _, timestep, sample, x0_pred, out in steps("tcd", kind):
        index = min(scheduler.step_index, len(scheduler.timesteps) - 1)
        following = scheduler.timesteps[index] if scheduler.step_index < len(scheduler.timesteps) else torch.tensor(0)
        alpha_bar = scheduler.alphas_cumprod[timestep]
        alpha_bar_s = scheduler.alphas_cumprod[torch.floor(0.5 * following).long()]
        noise = (sample - alpha_bar.sqrt() * x0_pred) / (1 - alpha_bar).sqrt()
        expected = alpha_bar_s.sqrt() * x0_pred + (1 - alpha_bar_s).sqrt() * noise
        torch.testing.assert_close(expected, out.pred_noised_sample, rtol=1e-4, atol=1e-4)


def noise_level(scheduler, timestep):
    """(alpha, sigma) of the scheduler's own noising process, read from its `add_noise` on unit inputs."""
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    add = getattr(scheduler, "add_noise", None) or (lambda x, n, t: scheduler.scale_noise(x, t, n))
    timesteps = timestep.reshape(1)
    return float(add(one, zero, timesteps)), float(add(zero, one, timesteps))


def exact_output(scheduler, x0, noise, level):
    """What a perfect model says about `alpha x0 + sigma noise`."""
    alpha, sigma = level
    name, kind = scheduler_name(scheduler), scheduler.config.get("prediction_type")
    if name == "EDMDPMSolverMultistepScheduler":
        data = scheduler.config.sigma_data
        sign = -1.0 if kind == "v_prediction" else 1.0
        c_skip, c_out = data**2 / (sigma**2 + data**2), sign * sigma * data / (sigma**2 + data**2) ** 0.5
        return (x0 - c_skip * (x0 + sigma * noise)) / c_out
    if name.startswith("FlowMatch") or kind == "flow_prediction":
        return noise - x0
    norm = (alpha**2 + sigma**2) ** 0.5  # 1 but for variance-exploding samplers, whose model sees the sample / norm
    return {"epsilon": noise, "sample": x0, "v_prediction": (alpha * noise - sigma * x0) / norm}[kind]


@pytest.mark.parametrize(
    ("name", "kind"), [c for c in CASES if c.values[0] not in ("ddim-clip", "ddim-threshold", "ddpm-clip")]
)
def test_inverts_the_noising_process(name, kind):
    scheduler, _ = make_scheduler(name, kind)
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=generator)
    for timestep in scheduler.timesteps[3:6]:
        fresh, _ = make_scheduler(name, kind)
        alpha, sigma = level = noise_level(fresh, timestep)
        sample = alpha * x0 + sigma * noise
        x0_pred = predict_x0(fresh, exact_output(fresh, x0, noise, level), timestep, sample)
        torch.testing.assert_close(x0_pred, x0, rtol=2e-3, atol=2e-3 * max(1.0, sigma / alpha))


def test_a_wrong_formula_fails_the_same_check():
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(10)
    sample, output = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    reported = scheduler.step(output, 500, sample, eta=0.0).pred_original_sample
    wrong = DDIMScheduler(prediction_type="epsilon", clip_sample=False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(predict_x0(wrong, output, 500, sample), reported)


def test_learned_variance_channels_are_dropped():
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(10)
    sample = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    output = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    timestep = scheduler.timesteps[2]
    x0_pred = predict_x0(scheduler, output, timestep, sample)
    reported = scheduler.step(output, timestep, sample, generator=torch.Generator()).pred_original_sample
    torch.testing.assert_close(x0_pred, reported, rtol=0, atol=0)


def test_every_supported_scheduler_is_tested():
    elsewhere = {
        "CogVideoXDPMScheduler",
        "FlowMatchEulerDiscreteScheduler",
    }  # test_mixture_law.py: another loop; refused
    assert {cls.__name__ for cls, *_ in FAMILIES.values()} | elsewhere == set(X0_PREDICTIONS)


def test_unsupported_scheduler_and_prediction_type_raise():
    sample = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="IPNDMScheduler cannot be steered.*DDIMScheduler"):
        predict_x0(IPNDMScheduler(), sample, 1, sample)
    with pytest.raises(ValueError, match="prediction_type 'nonsense'"):
        predict_x0(DDIMScheduler(prediction_type="nonsense"), sample, 1, sample)


DETERMINISTIC = [
    (DEISMultistepScheduler, {}),
    (EulerDiscreteScheduler, {}),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
    (HeunDiscreteScheduler, {}),
    (LMSDiscreteScheduler, {}),
    (PNDMScheduler, {"skip_prk_steps": True}),
    (UniPCMultistepScheduler, {}),
    (UniPCMultistepScheduler, {"predict_x0": False}),
]


@pytest.mark.parametrize(("kind", "settings"), DETERMINISTIC, ids=lambda value: getattr(value, "__name__", None))
def test_deterministic_schedulers_predict_the_clean_sample_of_an_exact_model(kind, settings):
    """A model that knows the one clean sample there is; its output is made of the scheduler's own `add_noise`."""
    scheduler = kind(**settings)
    scheduler.set_timesteps(8)
    clean, flow = torch.full((2, 1, 4, 4), 0.4), "FlowMatch" in kind.__name__
    alpha, sigma = own_level(scheduler, 0)
    sample = alpha * clean + sigma * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for index, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = own_level(scheduler, index)
        noise = (sample - alpha * clean) / sigma
        model_output = noise - clean if flow else noise
        torch.testing.assert_close(predict_x0(scheduler, model_output, timestep, sample), clean, rtol=0, atol=2e-3)
        assert signal_share(scheduler, timestep) == pytest.approx(alpha**2 / (alpha**2 + sigma**2), rel=1e-4)
        sample = scheduler.step(model_output, timestep, sample).prev_sample


def own_level(scheduler, index):
    """(alpha, sigma) before a step, read from the public tables of the scheduler."""
    if isinstance(scheduler, PNDMScheduler):
        alpha_bar = float(scheduler.alphas_cumprod[scheduler.timesteps[index]])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    sigma = float(scheduler.sigmas[index])
    if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        return 1 - sigma, sigma
    if isinstance(scheduler, (UniPCMultistepScheduler, DEISMultistepScheduler)):
        alpha = 1 / (1 + sigma**2) ** 0.5
        return alpha, sigma * alpha
    return 1.0, sigma


def test_every_deterministic_scheduler_is_tested():
    assert {kind.__name__ for kind, _ in DETERMINISTIC} == set(DETERMINISTIC_X0_PREDICTIONS)
    assert not set(DETERMINISTIC_X0_PREDICTIONS) & set(X0_PREDICTIONS)
    assert predicts_x0(EulerDiscreteScheduler()) and not predicts_x0(IPNDMScheduler())
    assert scheduler_name(EulerDiscreteScheduler()) is None  # it adds no noise


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_share_of_the_signal_rises_from_noise_to_clean(name, kind):
    scheduler, arguments = make_scheduler(name, kind)
    sample, shares = initial_sample(scheduler, 2), []
    for timestep in scheduler.timesteps:
        shares.append(signal_share(scheduler, timestep))
        output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
        sample = scheduler.step(output, timestep, sample, **arguments).prev_sample
    assert all(0 <= share <= 1 for share in shares)
    assert all(later >= share - 1e-6 for share, later in itertools.pairwise(shares))
    assert shares[0] < 0.05
    assert shares[-1] > 0.5
