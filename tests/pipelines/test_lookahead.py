"""Look-ahead in pipelines: what it predicts is what the stock pipeline draws from there, deterministically."""

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
)
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from fk_reward.pipelines import repeated_denoiser
from fk_reward.pipelines.hooks import wrap_method
from fk_reward.pipelines.lookahead import AdapterSwitch
from fk_reward.pipelines.repeated_denoiser import Guidance, RepeatedDenoiser
from fk_reward.search import BestOfN, ParticleMetropolis, Pruning
from fk_reward.search.budget import sample_steps
from tests import tiny
from tests.pipelines.calls import generator, steered
from tests.tiny.families import FAMILIES
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
        if isinstance(scheduler, LCMScheduler):
            scheduler.num_inference_steps = len(places)  # after its last step it adds no noise
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


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_one_step_ahead_is_the_prediction_of_the_step(name):
    plain, ahead = looked(CASES[name], None), looked(CASES[name], 1)
    assert all(torch.equal(one, other) for one, other in zip(plain[1].asked, ahead[1].asked, strict=True))
    assert plain[0].trace.cost.denoiser_rows == ahead[0].trace.cost.denoiser_rows


def test_the_call_itself_is_not_changed():
    """Nobody moves at a reward_scale near 0, and the noise is that of a call without a look-ahead."""
    pipe = steered(tiny.make_sd())
    arguments = {"num_particles": 3, "num_images_per_prompt": 3, "num_inference_steps": 6, "reward_scale": 1e-6}
    plain, ahead = (
        pipe(PROMPTS, lookahead=number, generator=generator(), output_type="pt", **arguments) for number in (1, 3)
    )
    assert torch.equal(plain.images, ahead.images)
    assert not torch.equal(plain.trace.steps[0].rewards, ahead.trace.steps[0].rewards)


def test_rows_and_sample_steps_are_counted():
    out, *_ = looked(CASES["sd"], 3)
    steps = 3 * 7 + 2 * 3 + 1 * 2 + (3 + 2) * 2  # of a prompt: those of the search, and two for each prediction
    assert out.trace.cost.sample_steps == len(PROMPTS) * steps == len(PROMPTS) * sample_steps(CUTS, STEPS, lookahead=3)
    assert out.trace.cost.denoiser_rows == 2 * out.trace.cost.sample_steps


def test_a_budget_pays_for_the_look_ahead():
    pipe = steered(tiny.make_sd(scheduler=ddim()))
    arguments = {"search": Pruning(num_particles=4, keep=(2,), at=(0.5,)), "num_inference_steps": 6, "budget": 60}
    outs = [pipe(PROMPTS[0], lookahead=number, generator=generator(), **arguments) for number in (1, 3)]
    sizes = [out.trace.steps[0].num_particles for out in outs]
    assert sizes[1] < sizes[0]
    assert all(out.trace.cost.sample_steps <= 60 for out in outs)


def test_micro_batches_change_nothing():
    whole, parts = (looked(CASES["sd"], 3, particle_batch_size=size)[1].asked for size in (None, 2))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_wrong_guidance_weight_is_noticed(monkeypatch):
    weight = repeated_denoiser._weight
    monkeypatch.setattr(repeated_denoiser, "_weight", lambda *args: weight(*args) + 0.5)
    with pytest.raises(ValueError, match="is not a combination u"):
        looked(CASES["sd"], 3)
    monkeypatch.setattr(repeated_denoiser, "_TOLERANCE", 1e9)
    with pytest.raises(AssertionError, match="not close"):
        test_equals_the_stock_pipeline_from_there("sd")


def test_a_saboteur_that_keeps_the_timestep_is_noticed(monkeypatch):
    monkeypatch.setattr(repeated_denoiser, "_timestep_like", lambda recorded, step, timestep: recorded)
    with pytest.raises(AssertionError, match="not close"):
        test_equals_the_stock_pipeline_from_there("flux")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_guidance_weight_is_read_off(dtype):
    first, second = torch.randn(2, 4, 4, 8, 8, generator=generator()).to(dtype)
    combined = first + 7.5 * (second - first)
    assert Guidance.read([first, second], combined, None).weight == pytest.approx(7.5, rel=1e-3)
    assert Guidance.read([second, first], combined, None).weight == pytest.approx(-6.5, rel=1e-3)
    assert Guidance.read([first, first], first, None).combine([first, first]).equal(first.float())
    with pytest.raises(ValueError, match="another guidance"):
        Guidance.read([first, second], combined * combined.std() / second.std(), None)
    with pytest.raises(ValueError, match="another guidance"):
        Guidance.read([first], 1.1 * first, None)


class Network(torch.nn.Module):
    """A denoiser that takes what a ControlNet or an inpainting pipeline would give."""

    def forward(self, sample, timestep, mid_block_additional_residual=None):
        return (sample.sin(),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, t: ((x, t), {"mid_block_additional_residual": x}), "mid_block_additional_residual .* belong to"),
        (lambda x, t: ((x + 1, t), {}), "something else than the samples"),
        (lambda x, t: ((torch.cat([x, x], 1), t), {}), "something else than the samples"),
        (lambda x, t: ((x, t + 1), {}), "another timestep"),
    ],
)
def test_calls_that_cannot_be_repeated(given, message):
    scheduler, network = ddim(), Network()
    scheduler.set_timesteps(4)
    repeated, x, timestep = RepeatedDenoiser(SimpleNamespace(scheduler=scheduler), network), torch.ones(1, 1, 2, 2), 501

    def asking(step, *args, **kwargs):
        repeated(x, 251)
        return step(*args, **kwargs)

    with wrap_method(scheduler, "step", asking), repeated.recording(), pytest.raises(ValueError, match=message):
        args, kwargs = given(x, timestep)
        scheduler.step(network(*args, **kwargs)[0], timestep, x)


def test_skip_layer_guidance_is_refused():
    case = CASES["sd3"]
    with pytest.raises(ValueError, match="combines 3 predictions"):
        looked(case, 3, skip_guidance_layers=[0], skip_layer_guidance_stop=0.9)


@pytest.mark.parametrize("name", ["ChromaPipeline", "StableDiffusionControlNetPipeline"])
def test_other_pipelines_are_refused_by_name(name):
    family = FAMILIES[name]
    pipe = steered(family.build())
    with pytest.raises(ValueError, match=f"{name} has no look-ahead"):
        pipe(search=CUTS, lookahead=2, num_inference_steps=2, **family.call_arguments(["a red circle"]))


def test_what_else_is_refused():
    pipe, call = steered(tiny.make_flux(scheduler=flow())), {"search": CUTS, "lookahead": 2, "num_inference_steps": 4}
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="keeps a cache from one call to the next .*disable_cache"):
        pipe(PROMPTS, **call)
    pipe.transformer.disable_cache()
    with pytest.raises(ValueError, match="'adapter' is for StableDiffusionPipeline"):
        pipe(PROMPTS, **call | {"lookahead": "adapter"})
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler has no look-ahead"):
        pipe(PROMPTS, **call)


def test_inside_the_runs_of_a_search_over_starts():
    """Each run of particle Metropolis-Hastings is FK steering, which scores on the way."""
    pipe = steered(tiny.make_sd(scheduler=ddim()))
    runs = ParticleMetropolis(num_particles=2, num_runs=2, num_resamples=2, reward_scale=1.0)
    out = pipe(PROMPTS[0], search=runs, lookahead=2, num_inference_steps=6)
    assert out.trace.provenance.lookahead == 2
    assert out.trace.cost.sample_steps == sample_steps(runs, 6, lookahead=2) == 2 * (2 * 6 + 2 * 2)


def test_a_search_that_scores_nothing_on_the_way():
    pipe = steered(tiny.make_sd(scheduler=ddim()))
    with pytest.raises(ValueError, match="lookahead=2 is about the predictions .* BestOfN scores finished images only"):
        pipe(PROMPTS[0], search=BestOfN(num_particles=2), lookahead=2, num_inference_steps=2)
    pipe.lookahead = 2  # of the calls that score predictions
    out = pipe(PROMPTS[0], search=BestOfN(num_particles=2), num_inference_steps=2)
    assert out.trace.provenance.lookahead == 1
    assert out.trace.cost.sample_steps == 4


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (1.5, TypeError), (True, TypeError), ("lcm", ValueError), ("adapter:", ValueError)],
)
def test_bad_settings(value, error):
    pipe = steered(tiny.make_sd())
    with pytest.raises(error, match="lookahead should be"):
        pipe.lookahead = value


def with_lora(*names):
    """A UNet with random LoRAs, all of them active, as `load_lora_weights` leaves them."""
    pipe = tiny.make_sd(scheduler=ddim())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name in names:
            pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False), name)
    pipe.unet.set_adapters(list(names))
    return pipe


def test_an_adapter_is_on_for_one_call():
    case, pipe = CASES["sd"], with_lora("lcm")
    out, seen, _ = looked(case, "adapter", pipe=pipe)
    _, plain, _ = looked(case, 1)
    assert all(torch.equal(seen.before[step], plain.before[step]) for step in range(1, CUT_STEPS[0]))
    assert pipe.unet.active_adapters() == ["lcm"]
    lcm = Case(None, lambda: LCMScheduler(**SD_BETAS), {"guidance_scale": 1.0})
    for number, step in enumerate(CUT_STEPS):
        expected = stock(lcm, pipe, seen, [step])
        torch.testing.assert_close(seen.asked[number], expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(seen.asked[0], plain.asked[0], rtol=1e-2, atol=1e-2)
    assert out.trace.cost.sample_steps == len(PROMPTS) * (3 * 7 + 2 * 3 + 1 * 2 + 3 + 2)
    assert out.trace.cost.denoiser_rows == len(PROMPTS) * (2 * (3 * 7 + 2 * 3 + 1 * 2) + 3 + 2)  # without guidance


def test_the_adapter_is_named_where_there_are_several():
    pipe = with_lora("style", "lcm")
    with pytest.raises(ValueError, match=r"2 adapters, and none is named \(style, lcm\)"):
        AdapterSwitch(pipe.unet)
    with pytest.raises(ValueError, match="no adapter 'turbo'"):
        AdapterSwitch(pipe.unet, "turbo")
    with pytest.raises(ValueError, match="nothing is loaded"):
        AdapterSwitch(tiny.make_sd().unet)
    layer = next(module for module in pipe.unet.modules() if isinstance(module, BaseTunerLayer))
    switch = AdapterSwitch.named(pipe.unet, "adapter:lcm")
    with switch.off():
        assert layer.active_adapters == ["style"]
        with switch.on():
            assert layer.active_adapters == ["style", "lcm"]
        assert layer.active_adapters == ["style"]
    assert layer.active_adapters == ["style", "lcm"]
    pipe.unet.fuse_lora()
    with pytest.raises(ValueError, match="are fused into its weights"):
        AdapterSwitch(pipe.unet, "lcm")
