"""A toy loop of ten steps for searches whose population grows and shrinks."""

from diffusers import DDIMScheduler

from fk_reward import steer
from tests.sampling.scheduler_cases import initial_sample, scaled_input, toy_model


def score(x0_pred):
    return x0_pred.mean(dim=(1, 2, 3))


def toy_run(config, *, num_groups=1, scheduler=None, generator=None):
    """The finished sample, the records of the scoring steps and the number of rows after each step."""
    if scheduler is None:
        scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    sample = initial_sample(scheduler, num_groups * config.num_particles)
    sizes = []
    with steer(scheduler, config.population(num_groups), score) as records:
        for timestep in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
            eta = {"eta": 1.0} if isinstance(scheduler, DDIMScheduler) else {}
            sample = scheduler.step(output, timestep, sample, **eta, generator=generator).prev_sample
            sizes.append(len(sample))
    return sample, records, sizes
