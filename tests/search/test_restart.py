"""Restart: the tilted law at any K, with a stochastic redraw only, and the passes of a pipeline."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from fk_reward import FKSteeringPipeline
from fk_reward.search import BestOfN, Restart, Scored
from tests import tiny

SCALE, NUM_STEPS = 1.2, 10
MEANS, SHARES, SPREAD = torch.tensor([-1.0, 1.2]).double(), torch.tensor([0.65, 0.35]).double(), 0.4
GRID = torch.linspace(-5, 5, 4001, dtype=torch.float64)
EDGES = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)
CONFIG = Restart(num_particles=40_000, num_restarts=40, strength=0.7, reward_scale=SCALE, selection="sample")


def reward(x):
    return torch.sin(3 * x) + 0.8 * (x > 0)


def mixture(x, alpha, sigma):
    """Densities of both modes at a level, (..., 2)."""
    variance = alpha**2 * SPREAD**2 + sigma**2
    return SHARES * torch.exp(-((x[..., None] - alpha * MEANS) ** 2) / (2 * variance)) / variance**0.5


def masses(tilt):
    """Probability of each bin between the edges, and of the two ends."""
    density = mixture(GRID, 1.0, 0.0).sum(-1) * torch.exp(tilt * reward(GRID))
    bins = torch.bucketize(GRID, EDGES)
    return torch.zeros(len(EDGES) + 1).double().index_add_(0, bins, density / density.sum())


def found(samples):
    return torch.bincount(torch.bucketize(samples.double(), EDGES), minlength=len(EDGES) + 1) / len(samples)


def distance(law, other):
    return float((law - other).abs().sum() / 2)


class ExactRollout:
    """Draws of the mixture, and x0 given x_t, exactly; the levels are those of a cosine schedule."""

    num_steps = NUM_STEPS

    def __init__(self, seed=0):
        self.generator, self.notes = torch.Generator().manual_seed(seed), []

    def note(self, sentence):
        self.notes.append(sentence)

    def __call__(self, start=None, *, from_step=0, num_particles, noise=None, fresh_noise=False, **_):
        if start is None:
            number = num_particles * self.num_groups
            mode = torch.multinomial(SHARES, number, replacement=True, generator=self.generator)
            x = MEANS[mode] + SPREAD * torch.randn(len(mode), dtype=torch.float64, generator=self.generator)
        else:
            assert fresh_noise
            angle = torch.tensor(torch.pi / 2 * (1 - from_step / NUM_STEPS)).double()
            alpha, sigma = torch.cos(angle), torch.sin(angle)
            x = self.redrawn(alpha * start + sigma * noise, alpha, sigma)
        return Scored(noise=x, latents=x, rewards=reward(x))

    num_groups = 1

    def redrawn(self, x, alpha, sigma):
        shares = mixture(x, alpha, sigma)
        mode = torch.multinomial(shares / shares.sum(-1, keepdim=True), 1, generator=self.generator)[:, 0]
        precision = 1 / SPREAD**2 + alpha**2 / sigma**2
        centre = (MEANS[mode] / SPREAD**2 + alpha * x / sigma**2) / precision
        return centre + precision**-0.5 * torch.randn(len(x), dtype=torch.float64, generator=self.generator)


class FlowRollout(ExactRollout):
    """A saboteur: the redraw is the probability flow, which in one dimension keeps the quantile."""

    def redrawn(self, x, alpha, sigma):
        wide = 3 * GRID
        noisy = mixture(wide, alpha, sigma).sum(-1).cumsum(0)
        clean = mixture(GRID, 1.0, 0.0).sum(-1).cumsum(0)
        level = (noisy / noisy[-1])[torch.searchsorted(wide, x).clamp_max(len(wide) - 1)]
        return GRID[torch.searchsorted(clean / clean[-1], level).clamp_max(len(GRID) - 1)]


def run(config, rollout, num_groups=1):
    rollout.num_groups = num_groups
    generators = [torch.Generator().manual_seed(100 + group) for group in range(num_groups)]
    return config.run(rollout, num_groups=num_groups, generators=generators).latents


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_the_tilted_law(strength):
    # 12 bins of 40,000 independent chains: a distance of .007 is expected of exact draws
    law = found(run(replace(CONFIG, strength=strength, num_restarts=round(28 / strength)), ExactRollout()))
    assert distance(law, masses(SCALE)) < 0.012
    assert distance(masses(SCALE), masses(0.0)) > 0.2


def test_a_scale_of_zero_keeps_the_plain_law_and_accepts_everything():
    rollout = ExactRollout()
    assert distance(found(run(replace(CONFIG, reward_scale=0.0, num_restarts=5), rollout)), masses(0.0)) < 0.012
    assert rollout.notes == ["200000 of 200000 redrawn images were accepted."]


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_number_of_particles_plays_no_part(num_particles):
    config, num_groups = replace(CONFIG, num_particles=num_particles, num_restarts=25), 1600 // num_particles
    law = found(run(config, ExactRollout(), num_groups))
    assert distance(law, masses(SCALE)) < 0.055  # .035 is expected of 1,600 exact draws


def test_a_deterministic_redraw_converges_elsewhere_which_a_scale_of_zero_does_not_show():
    assert distance(found(run(CONFIG, FlowRollout())), masses(SCALE)) > 0.02
    assert distance(found(run(replace(CONFIG, reward_scale=0.0), FlowRollout())), masses(0.0)) < 0.012


def test_an_acceptance_of_another_scale_is_noticed():
    assert distance(found(run(replace(CONFIG, reward_scale=2 * SCALE), ExactRollout())), masses(SCALE)) > 0.05


def test_the_best_image_that_a_chain_has_seen():
    rollout, seen = ExactRollout(), []
    draw = rollout.__call__

    class Watched(ExactRollout):
        def __call__(self, *args, **kwargs):
            seen.append(draw(*args, **kwargs))
            return seen[-1]

    best = run(replace(CONFIG, num_particles=50, num_restarts=6, selection="best"), Watched())
    rewards = torch.stack([one.rewards for one in seen])
    assert torch.equal(reward(best), rewards.amax(0))


def test_forbidden_images_are_left_and_never_entered():
    never, config = -torch.inf, Restart(reward_scale=0.0)
    now, new = torch.tensor([never, 0.0, never, 0.0]), torch.tensor([0.0, never, never, -9.0])
    assert config.accepted(now, new, [torch.Generator()]).tolist() == [True, False, True, True]
    population = Restart(num_particles=3, selection="sample").population(1)
    population.finish(torch.tensor([never, 1.0, 2.0]))
    assert population.select(2).tolist() == [[1, 2]]


def test_selection_by_order_and_by_reward():
    rewards = torch.tensor([0.3, 0.1, 0.2])
    for selection, expected in (("sample", [0, 1, 2]), ("best", [0, 2, 1])):
        population = Restart(num_particles=3, selection=selection).population(1)
        population.finish(rewards)
        assert population.select(3)[0].tolist() == expected


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


def wrapped(scheduler=DDIMScheduler):
    pipe = tiny.make_sd()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return FKSteeringPipeline(pipe, reward=redness)


def test_in_a_pipeline_with_several_prompts():
    pipe, search = wrapped(), Restart(num_particles=2, num_restarts=3, strength=0.5, reward_scale=1e6)
    shared = {"num_inference_steps": 4, "num_images_per_prompt": 2, "output_type": "pt"}

    def draw():
        return pipe(["a star", "a square"], search=search, generator=torch.Generator().manual_seed(0), **shared)

    out, again = draw(), draw()
    assert torch.equal(out.images, again.images)
    assert out.trace.cost.sample_steps == 2 * sum(search.population().forecast(4).steps) == 2 * (2 * 4 + 3 * 2 * 2)
    assert out.trace.search == "restart"
    assert any("of 12 redrawn images were accepted" in note for note in out.trace.notes)
    seen = torch.stack([step.rewards for step in out.trace.steps[:-1]])
    torch.testing.assert_close(out.rewards, seen.amax(0).sort(dim=1, descending=True).values)
    assert len(seen.unique()) == 4 * 4, "every redraw draws numbers of its own"


def test_no_restarts_are_best_of_n_bit_for_bit():
    pipe, shared = wrapped(), {"num_inference_steps": 3, "num_images_per_prompt": 2, "output_type": "pt"}
    shared["eta"] = 1.0  # best of N leaves it alone
    out, best = (
        pipe("a star", search=search, generator=torch.Generator().manual_seed(0), **shared)
        for search in (Restart(num_particles=2, num_restarts=0, reward_scale=10.0), BestOfN(num_particles=2))
    )
    assert torch.equal(out.images, best.images)


def test_deterministic_schedulers_are_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot be steered"):
        wrapped(EulerDiscreteScheduler)("a star", search="restart", reward_scale=1.0, num_inference_steps=4)
    with pytest.raises(ValueError, match="eta=0.0 is deterministic"):
        wrapped()("a star", search="restart", reward_scale=1.0, num_inference_steps=4, eta=0.0)
    with pytest.raises(ValueError, match="Restart redraws a part of the steps, and there is 1 of them"):
        wrapped()("a star", search="restart", reward_scale=1.0, num_inference_steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 0}, "num_particles should be at least 1"),
        ({"num_restarts": -1}, "num_restarts should be at least 0"),
        ({"strength": 1.0}, "strength should be between 0 and 1"),
        ({"strength": 0.0}, "strength should be between 0 and 1"),
        ({"reward_scale": -1.0}, "reward_scale should be"),
        ({"selection": "worst"}, "selection should be one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Restart(**settings)
