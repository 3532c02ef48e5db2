"""Zero-terminal-SNR models at eta 1, and errors about NaN that name the place where it began."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler

from fk_reward import FKSteeringConfig, steer
from fk_reward.sampling.stochasticity import require_stochastic
from fk_reward.search import FKPopulation

ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}
PLAIN = FKSteeringConfig(num_particles=2, num_resamples=0)
SCORED = FKSteeringConfig(num_particles=2, num_resamples=2, ess_threshold=1.0)


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
    config = FKSteeringConfig(num_particles=2, num_resamples=1, resample_start=0.25)
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
