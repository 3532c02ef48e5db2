"""Look-ahead in pipelines: what it predicts is what the stock pipeline draws from there, deterministically."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from fk_reward.search import Pruning
from tests import tiny
from tests.pipelines.calls import generator, steered
from tests.tiny.latent_diffusion import SD_BETAS

STEPS = 12
CUTS = Pruning(num_particles=3, keep=(2, 1), at=(0.5, 0.75))
CUT_STEPS = (6, 9)
PROMPTS = ["a red circle", "two blue squares"]
SMALL = {"height": 64, "width": 64}
PIXART = {"use_resolution_binning": False, "clean_caption": False}


def ddim(**options):
    return DDIMScheduler(**SD_BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=True, **options)


def euler(cls):
    return cls(**SD_BETAS, timestep_spacing="leading", steps_offset=1)


def flow():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@dataclass
class Case:
    """A pipeline, and the deterministic scheduler whose steps a look-ahead takes."""

    build: Any
    deterministic: Any
    arguments: dict[str, Any] = field(default_factory=dict)


CASES = {
    "sd": Case(lambda: tiny.make_sd(scheduler=ddim()), ddim, {"guidance_scale": 5.0}),
    "sd without guidance": Case(lambda: tiny.make_sd(scheduler=ddim()), ddim, {"guidance_scale": 1.0}),
    "sd 2": Case(
        lambda: tiny.make_sd(scheduler=ddim(prediction_type="v_prediction")),
        lambda: ddim(prediction_type="v_prediction"),
        {"guidance_scale": 5.0, "negative_prompt": ["blurred", "dark"]},
    ),
    "sd, rescaled": Case(
        lambda: tiny.make_sd(scheduler=ddim()), ddim, {"guidance_scale": 7.5, "guidance_rescale": 0.7}
    ),
    "sdxl": Case(
        lambda: tiny.make_sdxl(scheduler=euler(EulerAncestralDiscreteScheduler)),
        lambda: euler(EulerDiscreteScheduler),
        {"guidance_scale": 4.0, **SMALL},
    ),
    "sd3": Case(tiny.make_sd3, flow, {"guidance_scale": 4.0, **SMALL}),
    "flux": Case(tiny.make_flux, flow, {**SMALL}),
    "flux, true guidance": Case(
        tiny.make_flux, flow, {"true_cfg_scale": 3.0, "negative_prompt": ["blurred", "dark"], **SMALL}
    ),
    "pixart": Case(
        tiny.make_pixart,
        lambda: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=1),
        {"guidance_scale": 4.5, **SMALL, **PIXART},
    ),
}


class Seen:
    """Samples before each step, and what the reward was asked about: a preview and a callback of the pipeline."""

    def __init__(self):
        self.before: dict[int, torch.Tensor] = {}
        self.asked: list[torch.Tensor] = []
        self.timesteps = self.sigmas = None  # of the scheduler, which is as before after the call

    def preview(self, latents):
        self.asked.append(latents.clone())
        return latents.flatten(1)[:, :48].reshape(-1, 3, 4, 4).sigmoid()

    def callback(self, pipe, step, timestep, arguments):
        self.before[step + 1] = arguments["latents"].clone()
        self.note(pipe.scheduler)
        return {}

    def older_callback(self, scheduler):
        """For PixArt, whose call has no `callback_on_step_end`."""

        def callback(step, timestep, latents):
            self.before[step + 1] = latents.clone()
            self.note(scheduler)

        return callback

    def note(self, scheduler):
        self.timesteps, self.sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)


def looked(case, lookahead, *, pipe=None, config=CUTS, **arguments):
    """A call with a search that scores twice, on ever fewer particles."""
    seen, pipe = Seen(), pipe or case.build()
    wrapped = steered(pipe, lambda images, prompts: images.mean(dim=(1, 2, 3)))
    wrapped.preview = seen.preview
    watch = {"callback_on_step_end": seen.callback}
    if "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        watch = {"callback": seen.older_callback(pipe.scheduler)}
    out = wrapped(
        PROMPTS,
        search=config,
        lookahead=lookahead,
        num_inference_steps=STEPS,
        generator=generator(),
        output_type="latent",
        **watch | case.arguments | arguments,
    )
    return out, seen, pipe


def stock(case, pipe, seen, places, **arguments):
    """The stock pipeline from a sample on, with the deterministic scheduler on these of its timesteps."""
    run, scheduler, sample = pipe.scheduler, case.deterministic(), seen.before[places[0]]
    scheduler.set_timesteps(max(2, STEPS // (places[1] - places[0])) if len(places) > 1 else STEPS)
    timesteps = seen.timesteps[places]
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([seen.sigmas[places], torch.zeros(1)])

    def set_timesteps(num_inference_steps=None, device=None, sigmas=None, mu=None):
        scheduler.timesteps = timesteps
        if hasattr(scheduler, "sigmas"):
            scheduler._step_index = scheduler._begin_index = None

    scheduler.set_timesteps = set_timesteps
    pipe.scheduler = scheduler
    start = sample / float(getattr(scheduler, "init_noise_sigma", 1.0))
    try:
        return pipe(
            PROMPTS,
            latents=start,
            num_images_per_prompt=len(sample) // len(PROMPTS),
            num_inference_steps=len(places),
            output_type="latent",
            **case.arguments | arguments,
        ).images
    finally:
        pipe.scheduler = run


@pytest.mark.parametrize("name", CASES)
def test_equals_the_stock_pipeline_from_there(name):
    case = CASES[name]
    out, seen, pipe = looked(case, 3)
    for number, step in enumerate(CUT_STEPS):
        part = (STEPS - step) // 3
        places = [step, step + part, step + 2 * part]
        expected = stock(case, pipe, seen, places)
        scale = expected.std()
        torch.testing.assert_close(seen.asked[number] / scale, expected / scale, rtol=1e-4, atol=1e-4)
    assert out.trace.provenance.lookahead == 3


@pytest.mark.parametrize("name", CASES)
def test_one_step_ahead_is_the_prediction_of_the_step(name):
    plain, ahead = looked(CASES[name], None), looked(CASES[name], 1)
    assert all(torch.equal(one, other) for one, other in zip(plain[1].asked, ahead[1].asked, strict=True))
    assert plain[0].trace.cost.denoiser_rows == ahead[0].trace.cost.denoiser_rows
