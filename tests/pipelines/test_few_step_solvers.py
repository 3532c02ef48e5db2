"""Solvers of one-step and few-step models: what the authors' own files do, and what one step cannot do."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FluxPipeline, LCMScheduler

from fk_reward.pipelines import SOLVERS, FKSteeringPipeline, Solver
from fk_reward.search import NoiseSearch
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator

PROMPT = "a red circle"
# places in linspace(999, 0, 9) that inference.py of OPPO-Mente-Lab/TLCM (29cbd7f) takes, the one that is never asked
# left out; 8 steps take them all
TLCM = {2: [0, 4], 3: [0, 4, 7], 4: [0, 2, 4, 7], 5: [0, 2, 4, 6, 7], 6: [0, 2, 4, 5, 6, 7], 7: [0, 2, 3, 4, 5, 6, 7]}


def wrapped(pipe, solver):
    made = FKSteeringPipeline(pipe, reward=BrightnessReward(), solver=solver)
    made.set_progress_bar_config(disable=True)
    return made


def asked_timesteps(pipe, monkeypatch, **options):
    """Timesteps at which the denoiser is called, and the rows of each call."""
    seen, denoiser = [], getattr(pipe, "unet", None) or pipe.transformer
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((float(torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1
        else None)).flatten()[0]), len(args[0] if args else kwargs["hidden_states"]))),
        with_kwargs=True,
    )  # fmt: skip
    out = pipe(PROMPT, search="best-of-n", num_particles=1, generator=generator(), output_type="latent", **options)
    handle.remove()
    return [timestep for timestep, _ in seen], {rows for _, rows in seen}, out


@pytest.mark.parametrize("num_steps", range(2, 9))
def test_tlcm_asks_where_its_authors_do(num_steps, monkeypatch):
    levels = torch.linspace(999, 0, 9, dtype=int)
    expected = levels[TLCM.get(num_steps, list(range(8)))].tolist()
    timesteps, rows, _ = asked_timesteps(wrapped(tiny.make_sd(), f"tlcm-{num_steps}"), monkeypatch)
    assert timesteps == expected and rows == {1}, "no guidance"


def test_tlcm_draws_what_the_formula_of_its_authors_draws():
    """x0 by the noise that is predicted, noise on top for the next level; no boundary scaling, float32 levels."""
    pipe = wrapped(tiny.make_sd(), "tlcm-4")
    out = pipe(PROMPT, search="best-of-n", num_particles=1, generator=generator(), output_type="latent")
    alphas = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
    noises, embeds = generator(), pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    sample, timesteps = torch.randn(1, 4, 8, 8, generator=noises), [999, 749, 499, 124]
    with torch.no_grad():
        for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            level = alphas[timestep]
            predicted = pipe.unet(sample, timestep, encoder_hidden_states=embeds).sample
            x0 = (sample - (1 - level).sqrt() * predicted) / level.sqrt()
            if following is not None:
                noise = torch.randn(x0.shape, generator=noises)
                sample = alphas[following].sqrt() * x0 + (1 - alphas[following]).sqrt() * noise
    torch.testing.assert_close(out.images, x0, rtol=1e-4, atol=1e-4)


def test_diff_instruct_star_is_the_call_of_its_readme(monkeypatch):
    stock = tiny.make_sdxl()
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = LCMScheduler.from_config(stock.scheduler.config)
    call = {"num_inference_steps": 1, "guidance_scale": 0.0, "timesteps": [399]}
    expected = stock(PROMPT, generator=generator(), output_type="latent", **call).images
    timesteps, rows, out = asked_timesteps(wrapped(tiny.make_sdxl(), "distar-1"), monkeypatch)
    assert timesteps == [399] and rows == {1}
    assert torch.equal(out.images, expected)


@pytest.mark.parametrize(("name", "expected"), [("turbo-1", [999]), ("turbo-4", [999, 749, 499, 249])])
def test_turbo(name, expected, monkeypatch):
    timesteps, rows, _ = asked_timesteps(wrapped(tiny.make_sdxl(), name), monkeypatch)
    assert timesteps == expected and rows == {1}


def test_turbo_with_one_step_is_the_prediction(monkeypatch):
    """Whatever the sampler: Euler at the same level gives the same."""
    stock = tiny.make_sdxl()
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = EulerDiscreteScheduler.from_config(stock.scheduler.config, timestep_spacing="trailing")
    expected = stock(PROMPT, generator=generator(), output_type="latent", num_inference_steps=1, guidance_scale=0.0)
    _, _, out = asked_timesteps(wrapped(tiny.make_sdxl(), "turbo-1"), monkeypatch)
    torch.testing.assert_close(out.images, expected.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["schnell-4", "schnell-ode-4"])
def test_schnell(name, monkeypatch):
    """FLUX.1-schnell comes with shift 1 and no dynamic shifting."""
    stock = tiny.make_flux()
    stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config, shift=1.0, use_dynamic_shifting=False)
    pipe, lengths = wrapped(stock, name), []
    encode = FluxPipeline.encode_prompt

    def watched(self, *args, **kwargs):
        lengths.append(kwargs["max_sequence_length"])
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(FluxPipeline, "encode_prompt", watched)
    timesteps, rows, out = asked_timesteps(pipe, monkeypatch, height=64, width=64)
    np.testing.assert_allclose(timesteps, [1.0, 0.75, 0.5, 0.25], rtol=1e-6)
    assert rows == {1} and lengths == [256]


def test_the_published_sampler_of_schnell_is_euler():
    stock = tiny.make_flux()
    own = type(stock.scheduler).from_config(stock.scheduler.config, shift=1.0, use_dynamic_shifting=False)
    stock.scheduler = own
    stock.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "output_type": "latent", "max_sequence_length": 256, "guidance_scale": 0.0}
    from diffusers import FlowMatchEulerDiscreteScheduler

    stock.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    expected = stock(PROMPT, generator=generator(), num_inference_steps=4, **call).images
    stock.scheduler = own
    pipe = wrapped(stock, "schnell-ode-4")
    out = pipe(PROMPT, search="best-of-n", num_particles=1, generator=generator(), height=64, width=64,
               output_type="latent")  # fmt: skip
    assert torch.equal(out.images, expected)


@pytest.mark.parametrize("solver", ["tlcm-4", "distar-1"])
def test_other_numbers_of_steps_are_refused(solver):
    pipe = wrapped(tiny.make_sd(), solver)
    with pytest.raises(ValueError, match=r"the call asks for 3 steps: leave num_inference_steps out"):
        pipe(PROMPT, num_inference_steps=3)
    with pytest.raises(ValueError, match="timesteps should be 2"):
        Solver(scheduler=LCMScheduler, num_inference_steps=2, timesteps=(399,))
    given = pipe.solver.complete(pipe.pipe, {"timesteps": [799, 599], "guidance_scale": None})
    assert given["timesteps"] == [799, 599] and "num_inference_steps" not in given
    assert pipe.solver.complete(pipe.pipe, {"num_inference_steps": pipe.solver.num_inference_steps})


@pytest.mark.parametrize("search", ["fk", "svdd", "beam", "rollover"])
def test_one_step_says_which_search_to_use(search, caplog):
    pipe = wrapped(tiny.make_sd(), "distar-1")
    with caplog.at_level(logging.WARNING):
        pipe(PROMPT, search=search, num_particles=2, generator=generator(), output_type="latent")
    assert any("search='noise-search'" in message for message in caplog.messages), caplog.messages


@pytest.mark.parametrize("name", ["distar-1", "turbo-1", "tlcm-2", "tlcm-8", "lcm-4"])
def test_starts_of_few_step_models_are_searched(name):
    pipe = wrapped(tiny.make_sd(), name)
    steps = SOLVERS[name].num_inference_steps
    config = NoiseSearch(num_particles=2, num_rounds=3)
    out = pipe(PROMPT, search=config, generator=generator(), output_type="latent")
    assert out.trace.cost.sample_steps == 2 * 3 * steps
    plain = pipe(PROMPT, search="best-of-n", num_particles=2, generator=generator(), output_type="latent")
    assert out.rewards.max() >= plain.rewards.max()


@pytest.mark.parametrize("name", ["tlcm-2", "tlcm-4", "tlcm-8", "turbo-4"])
def test_few_steps_are_steered(name):
    pipe = wrapped(tiny.make_sd(), name)
    settings = {"num_particles": 4, "num_images_per_prompt": 4, "output_type": "latent"}
    out = pipe(PROMPT, reward_scale=1e9, ess_threshold=1.0, generator=generator(), **settings)
    ancestors = [step.ancestors for step in out.trace.steps if step.ancestors is not None]
    assert ancestors and ancestors[0].unique().numel() == 1
    assert len(out.images.flatten(1).unique(dim=0)) == 4, "copies draw noise of their own"
