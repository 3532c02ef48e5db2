"""No two particles of a prompt are ever the same where they are scored, so that there is no work to share.

Resampling copies particles; the scheduler's move, which follows at once, adds noise to each copy.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from fk_reward import FKSteeringConfig, steer
from fk_reward.pipelines import SOLVERS
from fk_reward.search import FKPopulation
from tests import tiny
from tests.pipelines.calls import decoder_of, steered
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.steering_configs import early

NUM_PARTICLES = 6
GREEDY = early(
    num_particles=NUM_PARTICLES, potential="immediate", ess_threshold=1.0, reward_scale=50.0, resample_start=0.0
)
ALL_STEPS = replace(GREEDY, resample_stop=1.0, num_resamples=99)


def check_all_differ(rows):
    assert len(torch.unique(rows.flatten(1), dim=0)) == len(rows)


def run(scheduler, arguments, config=ALL_STEPS, *, dtype=torch.float32):
    """Sample, and check whatever is scored and what is finished."""
    sample = initial_sample(scheduler, NUM_PARTICLES).to(dtype)
    generator = torch.Generator().manual_seed(1)

    def score(x0_pred):
        check_all_differ(x0_pred)
        return x0_pred.float().mean(dim=(1, 2, 3))

    with steer(scheduler, FKPopulation(config), score) as records:
        for timestep in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
            sample = scheduler.step(output, timestep, sample, generator=generator, **arguments).prev_sample
    check_all_differ(sample)
    copied = [len(r.ancestors.unique()) < NUM_PARTICLES for r in records if r.ancestors is not None]
    assert any(copied), "nothing was copied"


@pytest.mark.parametrize("num_steps", [4, 10])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_scheduler(name, kind, num_steps):
    run(*make_scheduler(name, kind, num_steps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler-ancestral", "dpm-sde-2", "lcm", "tcd"])
def test_half_precision(name, dtype):
    run(*make_scheduler(name, "epsilon"), dtype=dtype)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver(name):
    solver = SOLVERS[name]
    if solver.num_inference_steps == 1 or name == "schnell-ode-4":
        pytest.skip("one step, or steps without noise, copy nothing")
    own = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler = solver.build(FlowMatchEulerDiscreteScheduler() if name.startswith(("glass", "schnell")) else own)
    scheduler.set_timesteps(solver.num_inference_steps)
    run(scheduler, {} if solver.eta is None else {"eta": solver.eta})


def test_a_scheduler_without_noise_is_noticed(monkeypatch):
    monkeypatch.setattr("fk_reward.sampling.steering.require_stochastic", lambda *args, **kwargs: None)
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    with pytest.raises(AssertionError):
        run(scheduler, {"eta": 0.0})


def test_scoring_before_the_last_step_is_noticed(monkeypatch):
    monkeypatch.setattr(FKSteeringConfig, "_places", lambda self, num_steps: [num_steps - 1] * self.num_resamples)
    with pytest.raises(AssertionError):
        run(*make_scheduler("lcm", "epsilon"))


@pytest.mark.parametrize("final_particles", [None, 3])
def test_a_steered_call_scores_different_latents_only(final_particles):
    wrapped, batches = steered(tiny.make_sd()), []
    decode = decoder_of(wrapped)
    wrapped.preview = lambda latents: batches.append(latents) or decode(latents)
    config = replace(ALL_STEPS, final_particles=final_particles)
    generator = torch.Generator().manual_seed(0)
    arguments = {"steering": config, "num_inference_steps": 6, "output_type": "latent", "generator": generator}
    out = wrapped("a red circle", num_images_per_prompt=3, **arguments)
    assert any(len(step.ancestors.unique()) < step.num_particles for step in out.trace.steps[:-1])
    for latents in (*batches, out.images):
        check_all_differ(latents)
    assert out.trace.num_decode_calls == out.trace.num_reward_calls == sum(s.num_particles for s in out.trace.steps)
