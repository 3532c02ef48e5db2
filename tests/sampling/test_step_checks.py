"""What a scheduler's step did is checked: copies part, and the clean sample that it reports is ours."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)

from fk_reward import steer
from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler
from fk_reward.sampling.steering import CopiesCheck
from fk_reward.sampling.stochasticity import require_stochastic
from fk_reward.search import FKPopulation
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.sampling.test_steering import EVERY_STEP, generators
from tests.steering_configs import early

CONFIG = early(num_particles=4, num_resamples=3, reward_scale=1e3, ess_threshold=1.0)


class IgnoresEta(DDIMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        return super().step(model_output, timestep, sample, eta=0.0, return_dict=return_dict)


class ReadsVelocity(DDIMScheduler):
    """The model's output is a velocity, whatever the configuration says."""

    def step(self, model_output, timestep, sample, **options):
        alpha_bar = self.alphas_cumprod[timestep]
        noise = alpha_bar**0.5 * model_output + (1 - alpha_bar) ** 0.5 * sample
        return super().step(noise, timestep, sample, **options)


class Doubles(DPMSolverMultistepScheduler):
    """Doubles what its history keeps, and so what it moves towards."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return super().step(2 * model_output, timestep, sample, generator=generator, return_dict=return_dict)


class DoublesFlow(FlowMatchSDEScheduler):
    """The same for flow matching."""

    def step(self, model_output, timestep, sample, **options):
        return super().step(2 * model_output, timestep, sample, **options)


class ConvertsItself(DPMSolverMultistepScheduler):
    """Reads the output in its own way where its own step asks for it; so does `steer`."""

    def convert_model_output(self, model_output, *args, sample=None, **options):
        return super().convert_model_output(2 * model_output, *args, sample=sample, **options)


class Logs(DDIMScheduler):
    """A harmless subclass, of the laziest signature."""

    def step(self, *args, **options):
        logging.getLogger(__name__).debug("step")
        return super().step(*args, **options)


class OtherNames(EulerAncestralDiscreteScheduler):
    def step(self, out, t, x, generator=None, return_dict=True):
        return super().step(out, t, x, generator=generator, return_dict=return_dict)


class Forgets(DDIMScheduler):
    """Does not report the clean sample any more."""

    def step(self, *args, **options):
        return (super().step(*args, **{**options, "return_dict": False})[0],)


class Rests(DDIMScheduler):
    """Adds no noise at every third step, but does so at the next."""

    def step(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
        place = self.timesteps.tolist().index(int(timestep))
        eta = 0.0 if place % 3 == 0 else eta
        return super().step(model_output, timestep, sample, eta=eta, generator=generator, return_dict=return_dict)


def run(scheduler, *, config=CONFIG, num_steps=12, as_tuple=False, **arguments):
    scheduler.set_timesteps(num_steps)
    sample, slots = initial_sample(scheduler, 4), generators()
    with steer(scheduler, FKPopulation(config), lambda x0_pred: x0_pred.mean(dim=(1, 2, 3))) as records:
        for t in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, t), t)
            sample = scheduler.step(output, t, sample, generator=slots, return_dict=not as_tuple, **arguments)[0]
    assert any(record.ancestors is not None for record in records)
    return sample, records


@pytest.mark.parametrize("config", [CONFIG, EVERY_STEP], ids=["now and then", "every step"])
def test_a_step_that_ignores_eta_is_noticed(config):
    with pytest.raises(ValueError, match="still equal after step .* IgnoresEta .*derives from DDIMScheduler.* adds no"):
        run(IgnoresEta(clip_sample=False), config=config, eta=1.0)


def test_nobody_would_notice_without_the_check(monkeypatch):
    monkeypatch.setattr(CopiesCheck, "check", lambda *args, **options: None)
    sample, _ = run(IgnoresEta(clip_sample=False), eta=1.0)
    assert len(sample.flatten(1).unique(dim=0)) < 4


def test_a_scheduler_may_rest_for_a_step():
    sample, records = run(Rests(clip_sample=False), eta=1.0)
    assert any(r.ancestors is not None and r.step % 3 == 0 for r in records)
    assert len(sample.flatten(1).unique(dim=0)) == 4


def test_equal_generators_are_said_to_be_the_reason(caplog):
    scheduler, latents = DDIMScheduler(clip_sample=False), initial_sample(DDIMScheduler(), 4)
    scheduler.set_timesteps(12)
    slots = [torch.Generator().manual_seed(0) for _ in range(4)]
    with steer(scheduler, FKPopulation(CONFIG), lambda x0_pred: x0_pred.mean(dim=(1, 2, 3))) as records:
        for t in scheduler.timesteps:
            latents = scheduler.step(toy_model(latents, t), t, latents, eta=1.0, generator=slots).prev_sample
    assert "Generators of several particles are in the same state" in caplog.text
    assert records.notes == [caplog.records[0].message]


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize(
    ("scheduler", "arguments"),
    [
        (ReadsVelocity(clip_sample=False), {"eta": 1.0}),
        (Doubles(algorithm_type="sde-dpmsolver++"), {}),
        (DoublesFlow(), {}),
    ],
)
def test_another_reading_of_the_output_is_noticed(scheduler, arguments, as_tuple):
    name = type(scheduler).__name__
    with pytest.raises(ValueError, match=f"step of {name} reports another clean sample than"):
        run(scheduler, as_tuple=as_tuple, **arguments)


def test_a_reporting_class_that_does_not_report_is_refused():
    with pytest.raises(ValueError, match="Forgets has a step of its own that does not report pred_original_sample"):
        run(Forgets(clip_sample=False), eta=1.0)


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize(
    ("subclass", "plain", "arguments"),
    [
        (Logs(clip_sample=False), DDIMScheduler(clip_sample=False), {"eta": 1.0}),
        (OtherNames(), EulerAncestralDiscreteScheduler(), {}),
    ],
)
def test_a_harmless_subclass_is_steered_as_its_class(subclass, plain, arguments, as_tuple, caplog):
    (sample, _), (expected, _) = (run(s, as_tuple=as_tuple, **arguments) for s in (subclass, plain))
    assert torch.equal(sample, expected)
    assert not caplog.records


def test_a_conversion_of_its_own_is_what_the_rewards_are_of():
    run(ConvertsItself(algorithm_type="sde-dpmsolver++"))


@pytest.mark.parametrize(
    ("base", "config", "arguments"),
    [
        (TCDScheduler, {}, {"eta": 0.5}),
        (FlowMatchLCMScheduler, {}, {}),
    ],
)
def test_a_step_that_cannot_be_checked_is_told_of_once(base, config, arguments, caplog):
    def step(self, *args, **options):
        return base.step(self, *args, **options)

    subclass = type("Wrapped", (base,), {"step": step})
    _, records = run(subclass(**config), **arguments)
    assert [note for note in records.notes if "Wrapped has a step of its own" in note] == records.notes
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("dtype", "as_tuple"), [(torch.float32, True), (torch.float16, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_supported_scheduler_passes_its_own_check(name, kind, dtype, as_tuple, caplog):
    scheduler, arguments = make_scheduler(name, kind)
    sample = initial_sample(scheduler, 4).to(dtype)
    with steer(scheduler, FKPopulation(CONFIG), lambda x0_pred: x0_pred.float().mean(dim=(1, 2, 3))) as records:
        for t in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, t), t)
            sample = scheduler.step(output, t, sample, generator=generators(), return_dict=not as_tuple, **arguments)[0]
            sample = sample.to(dtype)
    assert records
    assert not [record for record in caplog.records if record.name.startswith("fk_reward")]


def test_nobody_looks_at_the_device_between_scoring_steps(monkeypatch):
    """A look at a number of the device makes the host wait for all the work that is queued there."""
    here, looks, tolist = [None], set(), torch.Tensor.tolist

    def look(self):
        looks.add(here[0] if self.dtype == torch.bool else None)
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "tolist", look)
    scheduler, arguments = make_scheduler("euler-ancestral", "epsilon")
    sample = initial_sample(scheduler, 4)
    with steer(scheduler, FKPopulation(CONFIG), lambda x0_pred: x0_pred.mean(dim=(1, 2, 3))) as records:
        for here[0], t in enumerate(scheduler.timesteps):
            output = toy_model(scaled_input(scheduler, sample, t), t)
            sample = scheduler.step(output, t, sample, generator=generators(), **arguments).prev_sample
        here[0] = None
    assert looks - {None} == {record.step for record in records}


ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
PLAIN = early(num_particles=2, num_resamples=0)
SCORED = early(num_particles=2, num_resamples=2, ess_threshold=1.0)


def score(x0_pred):
    return x0_pred.mean(dim=(1, 2, 3))


def first_step(scheduler, eta):
    sample = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return scheduler.step(sample / 2, scheduler.timesteps[0], sample, eta=eta, generator=generator).prev_sample


BETAS = [
    {},
    {"set_alpha_to_one": False},
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
]


@pytest.mark.parametrize("settings", BETAS)
def test_every_number_of_steps_is_finite_and_stock_where_stock_is(settings):
    scheduler = DDIMScheduler(**{**ZERO_SNR, **settings})
    for num_steps in range(1, 100):
        scheduler.set_timesteps(num_steps)
        stock = first_step(scheduler, 1.0)
        with steer(scheduler, FKPopulation(PLAIN), score):
            steered = first_step(scheduler, 1.0)
        assert steered.isfinite().all()
        if stock.isfinite().all():
            assert torch.equal(steered, stock)
    assert "_get_variance" not in vars(scheduler)


class RoundedUp(DDIMScheduler):
    """Which numbers of steps are hit depends on the processor; here all of them are."""

    def _get_variance(self, timestep, prev_timestep):
        variance = super()._get_variance(timestep, prev_timestep)
        return variance * (1 + 1e-6) if self.alphas_cumprod[timestep] == 0 else variance


def test_a_variance_that_is_rounded_up():
    scheduler = RoundedUp(**ZERO_SNR)
    for num_steps in range(2, 100):
        scheduler.set_timesteps(num_steps)
        assert first_step(scheduler, 1.0).isnan().all()
        with steer(scheduler, FKPopulation(PLAIN), score):
            steered = first_step(scheduler, 1.0)
        exact = DDIMScheduler(**ZERO_SNR)
        exact.set_timesteps(num_steps)
        room = 1 - exact.alphas_cumprod[scheduler.timesteps[0] - 1000 // num_steps]
        noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        sample = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(steered, (1 - room).sqrt() * -sample / 2 + room.sqrt() * noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.3, 0.999])
def test_less_noise_is_left_alone(eta):
    scheduler = DDIMScheduler(**ZERO_SNR)
    for num_steps in range(1, 100):
        scheduler.set_timesteps(num_steps)
        with steer(scheduler, FKPopulation(PLAIN), score):
            steered = first_step(scheduler, eta)
        assert torch.equal(steered, first_step(scheduler, eta))


@pytest.mark.parametrize("num_steps", [25, 30, 50])
def test_a_whole_steered_run_is_finite(num_steps):
    scheduler = DDIMScheduler(**ZERO_SNR)
    scheduler.set_timesteps(num_steps)
    sample = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with steer(scheduler, FKPopulation(SCORED), score) as records:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.tanh(sample), timestep, sample, eta=1.0).prev_sample
    assert len(records) == 2
    assert sample.isfinite().all()


def broken_loop(place, config, *, scheduler=None):
    """A loop in which something goes wrong at step 1, before anything is scored."""
    scheduler = scheduler or EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(6)
    sample = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with steer(scheduler, FKPopulation(config), score):
        for index, timestep in enumerate(scheduler.timesteps):
            output = torch.tanh(sample)
            if index == 1 and place == "denoiser":
                output[1] = torch.nan
            if index == 1 and place == "loop":
                sample[0, 0] = torch.inf
            if index == 1 and place == "scheduler":
                scheduler.sigmas[2] = torch.nan
            sample = scheduler.step(output, timestep, sample).prev_sample


PLACES = {
    "denoiser": "The denoiser's output at step 1 holds NaN.*float32 or bfloat16",
    "loop": "The latents that came into step 1 hold NaN",
    "scheduler": "What EulerAncestralDiscreteScheduler returned at step 1 holds NaN.*another scheduler or number",
}


@pytest.mark.parametrize("config", [PLAIN, SCORED], ids=["best of N", "scored"])
@pytest.mark.parametrize("place", PLACES)
def test_the_first_place_is_named(place, config):
    with pytest.raises(ValueError, match=PLACES[place]):
        broken_loop(place, config)


def test_a_prediction_that_divides_by_zero_is_named():
    scheduler = LCMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    scheduler.alphas_cumprod[scheduler.timesteps[1]] = 0.0
    sample = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    config = early(num_particles=2, num_resamples=1, resample_start=0.25)
    with steer(scheduler, FKPopulation(config), score), pytest.raises(ValueError, match="clean sample at step 1"):
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.tanh(sample), timestep, sample).prev_sample


def test_zero_snr_models_that_predict_noise_are_refused_before_they_divide_by_zero():
    scheduler = DDIMScheduler(**{**ZERO_SNR, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match='prediction_type="v_prediction"'):
        require_stochastic(scheduler, eta=1.0)
    require_stochastic(
        DDIMScheduler(**{**ZERO_SNR, "timestep_spacing": "leading", "prediction_type": "epsilon"}), eta=1.0
    )
