"""Particle Metropolis-Hastings: the tilted law at a K at which one FK run is far from it."""

from dataclasses import replace

import pytest
import torch

from fk_reward import FKSteeringPipeline
from fk_reward.search import FKSteeringConfig, ParticleMetropolis, Scored, fit_budget, sample_steps
from tests import tiny

MEANS, SHARES, SPREAD = torch.tensor([-1.5, 1.5]).double(), torch.tensor([0.15, 0.85]).double(), 0.3
NUM_STEPS, NUM_PROMPTS, SCALE = 6, 1000, 2.0
ANGLES = torch.linspace(0.97, 0.0, NUM_STEPS + 1, dtype=torch.float64) * torch.pi / 2
CONFIG = ParticleMetropolis(
    num_particles=2, num_runs=10, reward_scale=SCALE, reward_weight="constant", resample_start=0.6, num_resamples=1
)
GRID = torch.linspace(-4, 4, 8001, dtype=torch.float64)


def reward(x):
    return torch.tanh(-2 * x) - 0.2 * x**2


def shares(x, alpha, sigma):
    """Of the modes, given x_t, `(n, 2)`."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    return torch.softmax(SHARES.log() - (x[:, None] - alpha * MEANS) ** 2 / (2 * variance), -1)


def posterior(x, alpha, sigma):
    """Means `(n, 2)` and the standard deviation of x0 given x_t and the mode."""
    precision = 1 / SPREAD**2 + alpha**2 / sigma**2
    return (MEANS / SPREAD**2 + alpha * x[:, None] / sigma**2) / precision, precision**-0.5


class ExactRollout:
    """FK runs on the mixture, by its exact reverse chain: x0 from p(x0 | x_t), then x_t' from q(x_t' | x_t, x0)."""

    num_steps = NUM_STEPS

    def __init__(self, seed=0):
        self.generator, self.notes = torch.Generator().manual_seed(seed), []
        self.fresh = []

    def note(self, sentence):
        self.notes.append(sentence)

    def normal(self, number):
        return torch.randn(number, dtype=torch.float64, generator=self.generator)

    def drawn(self, probabilities):
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]

    def __call__(self, *, num_particles, search, fresh_noise=False):
        self.fresh.append(fresh_noise)
        population = search.population(NUM_PROMPTS, torch.Generator().manual_seed(len(self.fresh)))
        population.begin(NUM_STEPS)
        number = NUM_PROMPTS * num_particles
        alpha, sigma = torch.cos(ANGLES[0]), torch.sin(ANGLES[0])
        mode = self.drawn(SHARES.expand(number, 2))
        x = alpha * (MEANS[mode] + SPREAD * self.normal(number)) + sigma * self.normal(number)
        for step in range(NUM_STEPS):
            alpha, sigma = torch.cos(ANGLES[step]), torch.sin(ANGLES[step])
            if step in population.scoring_steps(NUM_STEPS):
                means, _ = posterior(x, alpha, sigma)
                ancestors = population.advance(reward((shares(x, alpha, sigma) * means).sum(1)), step=step)
                x = x if ancestors is None else x[ancestors]
            x = self.moved(x, step)
        population.finish(reward(x))
        weights, evidence = population.log_weights.flatten(), population.log_evidence
        return Scored(
            noise=x,
            latents=x,
            rewards=reward(x),
            log_weights=weights,
            log_evidence=evidence.repeat_interleave(num_particles),
        )

    def moved(self, x, step):
        (alpha, before), (sigma, after) = torch.cos(ANGLES[step : step + 2]), torch.sin(ANGLES[step : step + 2])
        means, spread = posterior(x, alpha, sigma)
        mode = self.drawn(shares(x, alpha, sigma))
        x0 = means.gather(1, mode[:, None])[:, 0] + spread * self.normal(len(x))
        ratio = alpha / before
        noise = sigma**2 - (ratio * after) ** 2  # of x_t given x_t'
        mean = (ratio * after**2 * x + before * noise * x0) / sigma**2
        return mean + (noise / sigma**2) ** 0.5 * after * self.normal(len(x))


def exact():
    """Tilted mass below 0, tilted mean, and the plain mass, by quadrature."""
    density = (SHARES * torch.exp(-((GRID[:, None] - MEANS) ** 2) / (2 * SPREAD**2))).sum(1)
    tilted = density * torch.exp(SCALE * reward(GRID))
    below, total = GRID < 0, tilted.sum()
    return (
        float(tilted[below].sum() / total),
        float((tilted * GRID).sum() / total),
        float(density[below].sum() / density.sum()),
    )


def run(config, rollout=None):
    rollout = rollout or ExactRollout()
    generators = [torch.Generator().manual_seed(100 + group) for group in range(NUM_PROMPTS)]
    return config.run(rollout, num_groups=NUM_PROMPTS, generators=generators).latents.view(NUM_PROMPTS, -1)


def deviations(drawn):
    """Distance of the first image's mass below 0 and mean from the exact ones, in standard errors."""
    mass, mean, _ = exact()
    values = torch.stack([(drawn[:, 0] < 0).double(), drawn[:, 0]])
    return ((values.mean(1) - torch.tensor([mass, mean])) / (values.std(1) / NUM_PROMPTS**0.5)).abs().max()


def test_the_oracle_is_far_from_the_plain_law():
    mass, _, plain = exact()
    assert mass > 0.6
    assert plain < 0.2
    untilted = run(replace(CONFIG, reward_scale=0.0, num_runs=1))
    assert float((untilted < 0).double().mean()) == pytest.approx(plain, abs=0.03)


def test_the_tilted_law_at_two_particles():
    rollout = ExactRollout()
    assert deviations(run(CONFIG, rollout)) < 3.5
    assert rollout.fresh == [False] + [True] * 9
    accepted, _, number = rollout.notes[0].split()[:3]
    assert 0.2 < int(accepted) / int(number) < 0.9


def test_one_run_is_biased():
    assert deviations(run(replace(CONFIG, num_runs=1))) > 6


def test_runs_that_are_all_accepted_are_biased(monkeypatch):
    monkeypatch.setattr(ParticleMetropolis, "accepted", lambda self, now, new, generators: torch.ones(len(now)).bool())
    assert deviations(run(CONFIG)) > 6


def test_an_acceptance_by_the_final_weights_alone_is_noticed():
    """The evidence is more than the mean of the weights that are left after the last resampling."""

    class Rollout(ExactRollout):
        def __call__(self, **arguments):
            scored = super().__call__(**arguments)
            left = scored.log_weights.view(NUM_PROMPTS, -1)
            mean = (left - left.amax(1, keepdim=True)).exp().mean(1).log() + left.amax(1)
            return replace(scored, log_evidence=mean.repeat_interleave(left.shape[1]))

    assert deviations(run(CONFIG, Rollout())) > 5


def test_the_best_of_an_accepted_run_follows_another_law(monkeypatch):
    def best(self, runs, generators):
        places = runs.rewards.view(len(generators), -1).argmax(1) + self.num_particles * torch.arange(len(generators))
        return places.repeat_interleave(self.num_particles)

    monkeypatch.setattr(ParticleMetropolis, "drawn", best)
    assert deviations(run(CONFIG)) > 4


def test_runs_without_an_allowed_image_are_never_accepted():
    config, generators = ParticleMetropolis(), [torch.Generator().manual_seed(0)] * 3
    now = torch.tensor([0.0, -torch.inf, -torch.inf]).double()
    new = torch.tensor([-torch.inf, -5.0, -torch.inf]).double()
    assert config.accepted(now, new, generators).tolist()[:2] == [False, True]


def test_it_costs_so_many_runs_and_a_budget_sets_their_number():
    config = ParticleMetropolis(num_particles=4, num_runs=3)
    assert sample_steps(config, 20) == 240
    assert fit_budget(config, 500, 20).num_runs == 6
    forecast = config.population().forecast(20)
    assert (len(forecast.steps), forecast.scorings, forecast.finished) == (60, (4,) * 14, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_scale": "auto"}, "should be a number or 'card', got 'auto'"),
        ({"num_runs": 0}, "num_runs"),
        ({"potential": "none"}, "potential"),
        ({"num_particles": 0}, "num_particles"),
        ({"abstain": 1}, "abstain"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ParticleMetropolis(**settings)


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def test_in_a_pipeline():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=brightness)
    config = ParticleMetropolis(num_particles=3, num_runs=3, reward_scale=100.0, num_resamples=2)
    arguments = {"num_inference_steps": 4, "num_images_per_prompt": 3}
    prompts = ["a dog", "a cat"]
    runs = [pipe(prompts, search=config, generator=torch.Generator().manual_seed(0), **arguments) for _ in range(2)]
    assert torch.equal(runs[0].rewards, runs[1].rewards)
    trace = runs[0].trace
    assert trace.search == "particle-metropolis"
    assert trace.cost.sample_steps == 2 * 3 * 3 * 4
    assert trace.notes[0].endswith("of 4 proposed runs were accepted.")
    one = pipe(prompts, search=replace(config, num_runs=1), generator=torch.Generator().manual_seed(0), **arguments)
    fk = FKSteeringConfig(
        num_particles=3, reward_scale=100.0, num_resamples=2, potential="difference", selection="sample"
    )
    plain = pipe(prompts, search=fk, generator=torch.Generator().manual_seed(0), **arguments)
    known = [set(rewards.tolist()) for rewards in plain.trace.steps[-1].rewards]
    assert all(set(drawn.tolist()) <= these for drawn, these in zip(one.rewards, known, strict=True))  # the same run


def test_later_runs_are_new_ones():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=brightness)
    config = ParticleMetropolis(num_particles=2, num_runs=2, reward_scale=0.0)
    out = pipe("a dog", search=config, generator=torch.Generator().manual_seed(0), num_inference_steps=2)
    first, last = out.trace.steps[0].rewards, out.trace.steps[-1].rewards
    assert not set(first.flatten().tolist()) & set(last.flatten().tolist())  # at lambda 0 the new run is accepted
