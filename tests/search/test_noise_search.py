"""Noise search: its laws where it has one, what it reduces to, and what it costs."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from scipy.fft import dctn

from fk_reward import FKSteeringPipeline
from fk_reward.search import BestOfN, NoiseSearch, Scored
from fk_reward.search import noise_search as module
from fk_reward.search.budget import fit_budget, sample_steps
from fk_reward.search.noise_search import STRATEGIES, accepted, cosines, neighbour
from tests import tiny

NUM_CHAINS, SHAPE = 20_000, (1, 2, 2)
SCALE = 1.2
SIDEWAYS = torch.tensor([[[0.8, -0.6], [0.3, 0.0]]])


def linear(starts):
    """A reward whose tilted law is N(lambda * SIDEWAYS, I)."""
    return (starts * SIDEWAYS).flatten(1).sum(1)


class ToyRollout:
    """Starts are images; the first ones are normal, about a mean that can be set."""

    num_steps = 1

    def __init__(self, reward, shape=SHAPE, *, mean=0.0, num_groups=1, seed=0):
        self.reward, self.shape, self.mean, self.num_groups = reward, shape, mean, num_groups
        self.generator = torch.Generator().manual_seed(seed)
        self.starts, self.fresh = [], []

    def __call__(self, start=None, *, from_step=0, num_particles, num_steps=None, fresh_noise=False):
        if start is None:
            size = (self.num_groups * num_particles, *self.shape)
            start = torch.randn(size, generator=self.generator) + self.mean
        self.starts.append(start)
        self.fresh.append(fresh_noise)
        return Scored(noise=start, latents=start, rewards=self.reward(start))


def search(rollout, *, num_groups=1, seed=5, **settings):
    generators = [torch.Generator().manual_seed(seed + group) for group in range(num_groups)]
    return NoiseSearch(**settings).run(rollout, num_groups=num_groups, generators=generators)


def check_law(starts, mean):
    """Mean and covariance of chains are those of N(mean, I).

    A mean of n numbers has the standard error 1 / sqrt(n), a variance sqrt(2 / n), here .0071 and .01; four of each are
    allowed. So a mean that is off by .042, or a variance that is off by .06, is found with probability .98.
    """
    flat, n = starts.flatten(1), len(starts)
    error = (flat.mean(0) - mean.flatten()).abs().max()
    assert error < 4 / math.sqrt(n), f"mean off by {error:.4f}"
    deviation = (flat.T.cov() - torch.eye(flat.shape[1])).abs().max()
    assert deviation < 4 * math.sqrt(2 / n), f"covariance off by {deviation:.4f}"


PCN = {"strategy": "pcn", "num_particles": NUM_CHAINS}


def test_pcn_without_a_reward_leaves_plain_noise():
    found = search(ToyRollout(linear), **PCN, num_rounds=12, step_size=0.5, reward_scale=0.0)
    check_law(found.noise, torch.zeros(SHAPE))
    assert found.notes == ("pCN: 100% of 220000 proposals were accepted (step_size 0.5).",)


@pytest.mark.parametrize("step_size", [0.3, 0.8, 1.0])
def test_pcn_leaves_the_tilted_law(step_size):
    """Chains that begin in it stay in it."""
    rollout = ToyRollout(linear, mean=SCALE * SIDEWAYS)
    found = search(rollout, **PCN, num_rounds=4, step_size=step_size, reward_scale=SCALE)
    check_law(found.noise, SCALE * SIDEWAYS)


def test_pcn_comes_to_the_tilted_law():
    """From plain noise: |lambda a| = 1.25, and each of 40 rounds moves by .7."""
    found = search(ToyRollout(linear), **PCN, num_rounds=40, step_size=0.7, reward_scale=SCALE)
    check_law(found.noise, SCALE * SIDEWAYS)


SABOTEURS = {
    "a random walk": lambda starts, noise, step: starts + step * noise,
    "a slightly long step": lambda starts, noise, step: math.sqrt(1 - step**2) * starts + 1.1 * step * noise,
    "a slight pull": lambda starts, noise, step: 0.97 * (math.sqrt(1 - step**2) * starts + step * noise),
}


@pytest.mark.parametrize("name", SABOTEURS)
def test_other_proposals_are_noticed(monkeypatch, name):
    monkeypatch.setattr(module, "neighbour", SABOTEURS[name])
    found = search(ToyRollout(linear), **PCN, num_rounds=12, step_size=0.5, reward_scale=0.0)
    with pytest.raises(AssertionError, match="off by"):
        check_law(found.noise, torch.zeros(SHAPE))


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_another_acceptance_is_noticed(monkeypatch, factor):
    def wrong(before, proposed, uniforms, *, reward_scale):
        return accepted(before, proposed, uniforms, reward_scale=factor * reward_scale)

    monkeypatch.setattr(module, "accepted", wrong)
    rollout = ToyRollout(linear, mean=SCALE * SIDEWAYS)
    found = search(rollout, **PCN, num_rounds=12, step_size=0.8, reward_scale=SCALE)
    with pytest.raises(AssertionError, match="mean off"):
        check_law(found.noise, SCALE * SIDEWAYS)


def test_forbidden_starts_are_left_and_never_gone_to():
    """A hard constraint: the law is that of noise on the allowed side, whose mean is sqrt(2 / pi)."""

    def constrained(starts):
        return torch.zeros(len(starts)).masked_fill(starts.flatten(1)[:, 0] < 0, -torch.inf)

    found = search(ToyRollout(constrained), **PCN, num_rounds=30, step_size=0.95, reward_scale=0.0)
    first = found.noise.flatten(1)[:, 0]
    assert (first >= 0).all()
    deviation = math.sqrt(1 - 2 / math.pi)
    assert abs(float(first.mean()) - math.sqrt(2 / math.pi)) < 4 * deviation / math.sqrt(NUM_CHAINS)
    nowhere = torch.full((2,), -torch.inf)
    assert accepted(nowhere, nowhere, torch.rand(2), reward_scale=1.0).all()  # from nowhere to nowhere, to get away


def bowl(starts):
    return -(starts - 1).square().flatten(1).sum(1)


LARGE = (2, 8, 8)


def low_bowl(starts):
    """A reward of the lowest frequencies alone, which the cross-entropy method looks at."""
    low = torch.from_numpy(dctn(starts.numpy(), axes=(-2, -1), norm="ortho"))[..., :2, :2]
    return -(low - 1.5).square().flatten(1).sum(1)


@pytest.mark.parametrize("method", ["random", "zero-order", "cem"])
def test_optimisers_return_the_best_of_all_rounds(method):
    rollout = ToyRollout(bowl, LARGE, num_groups=3)
    found = search(rollout, num_groups=3, num_particles=4, num_rounds=6, strategy=method, reward_scale=10.0)
    seen = torch.cat([bowl(starts).view(3, 4) for starts in rollout.starts], dim=1)
    torch.testing.assert_close(found.rewards.view(3, 4), seen.sort(dim=1, descending=True).values[:, :4])
    torch.testing.assert_close(bowl(found.noise), found.rewards)  # each row's own start


def test_rewards_that_can_be_climbed_are():
    """At the same cost: zero-order above random on a bowl, the cross-entropy method on one of low frequencies."""
    common = {"num_groups": 40, "num_particles": 8, "num_rounds": 12}

    def best(method, reward):
        found = search(ToyRollout(reward, LARGE, num_groups=40), strategy=method, num_frequencies=2, **common)
        return found.rewards.view(40, -1).amax(1)

    for method, reward in (("zero-order", bowl), ("cem", low_bowl)):
        gain = best(method, reward) - best("random", reward)
        assert gain.mean() > 4 * gain.std() / math.sqrt(40)


def test_neighbours_are_noise_at_a_known_correlation():
    rollout = ToyRollout(lambda starts: starts.flatten(1)[:, 0], (4, 64, 64))
    search(rollout, num_particles=4, num_rounds=2, step_size=0.6)
    pivot = rollout.starts[0][rollout.starts[0].flatten(1)[:, 0].argmax()].flatten()
    for start in rollout.starts[1]:
        pair = torch.stack([pivot, start.flatten()])
        assert pair.corrcoef()[0, 1] == pytest.approx(0.8, abs=4 * 0.36 / 128)
        assert start.std() == pytest.approx(1.0, abs=4 / 128 / math.sqrt(2))
    assert torch.equal(neighbour(pivot, start.flatten(), 1.0), start.flatten())


class NoisyRollout(ToyRollout):
    """An image is its start beside the noise of its steps, and the reward sees both."""

    def __init__(self, reward, *, renews=True, **options):
        super().__init__(reward, **options)
        self.renews, self.noise = renews, None

    def __call__(self, start=None, *, num_particles, fresh_noise=False, **options):
        found = super().__call__(start, num_particles=num_particles, fresh_noise=fresh_noise, **options)
        if self.noise is None or (fresh_noise and self.renews):
            self.noise = torch.randn(found.noise.shape, generator=self.generator)
        images = torch.cat([found.noise, self.noise], dim=1)
        return Scored(noise=found.noise, latents=images, rewards=self.reward(images))


def linear_in_both(images):
    return linear(images[:, :1]) + linear(images[:, 1:])


def test_pcn_comes_to_the_tilted_law_of_images_under_a_stochastic_solver():
    """Of the noise of the steps as much as of the start: both are part of a state."""
    found = search(NoisyRollout(linear_in_both), **PCN, num_rounds=250, step_size=0.7, reward_scale=SCALE)
    check_law(found.latents, SCALE * torch.cat([SIDEWAYS, SIDEWAYS]))


def test_noise_that_every_round_repeats_is_noticed():
    rollout = NoisyRollout(linear_in_both, renews=False)
    found = search(rollout, **PCN, num_rounds=250, step_size=0.7, reward_scale=SCALE)
    with pytest.raises(AssertionError, match="mean off"):
        check_law(found.latents, SCALE * torch.cat([SIDEWAYS, SIDEWAYS]))


@pytest.mark.parametrize("method", STRATEGIES)
def test_every_round_draws_new_noise(method):
    rollout = ToyRollout(bowl, LARGE)
    search(rollout, num_particles=3, num_rounds=3, strategy=method, reward_scale=10.0)
    assert rollout.fresh == [False, True, True]


def test_rounds_of_a_stochastic_solver_are_as_different_as_images(pipe):
    """The same start with the numbers of the round before would be the same image."""
    config = NoiseSearch(num_particles=3, num_rounds=2, strategy="zero-order", step_size=1e-6)
    trace = call(pipe, search=config, eta=1.0, num_inference_steps=4).trace
    first, second = (step.rewards for step in trace.steps[:2])
    assert not torch.isclose(second, first.amax(dim=1, keepdim=True), rtol=0, atol=1e-4).any()
    trace = call(pipe, search=config, eta=0.0, num_inference_steps=4).trace
    first, second = (step.rewards for step in trace.steps[:2])
    torch.testing.assert_close(second, first.amax(dim=1, keepdim=True).expand(2, 3), rtol=0, atol=1e-4)


def test_frequencies_are_those_of_scipy_and_others_stay_plain_noise():
    noise = torch.randn(3, 2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = cosines(8) @ noise @ cosines(6).T
    torch.testing.assert_close(ours, torch.from_numpy(dctn(noise.numpy(), axes=(-2, -1), norm="ortho")))
    rollout = ToyRollout(low_bowl, LARGE, num_groups=1)
    search(rollout, num_particles=400, num_rounds=9, strategy="cem", num_frequencies=2, elite_share=0.1)
    spectrum = torch.from_numpy(dctn(rollout.starts[-1].numpy(), axes=(-2, -1), norm="ortho"))
    assert (spectrum[..., :2, :2].mean((0, 1)) - 1.5).abs().max() < 0.4  # found
    rest = torch.ones(8, 8, dtype=torch.bool)
    rest[:2, :2] = False
    others = spectrum[..., rest]
    assert abs(float(others.mean())) < 4 / math.sqrt(others.numel())
    assert float(others.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / others.numel()))


@pytest.mark.parametrize("method", STRATEGIES)
def test_a_prompt_does_not_depend_on_the_others(method):
    """Each has its own generator, and is never compared with another."""
    first = torch.randn(3 * 4, *LARGE, generator=torch.Generator().manual_seed(1))

    def run(groups):
        rollout = ToyRollout(bowl, LARGE)
        rows = torch.cat([torch.arange(4 * group, 4 * group + 4) for group in groups])

        def given(start=None, **options):
            return rollout(first[rows] if start is None else start, **options)

        generators = [torch.Generator().manual_seed(group) for group in groups]
        config = NoiseSearch(num_particles=4, num_rounds=5, strategy=method, reward_scale=10.0)
        return config.run(given, num_groups=len(groups), generators=generators).rewards

    torch.testing.assert_close(run([0, 1, 2])[4:8], run([1]), rtol=1e-5, atol=1e-5)


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


@pytest.fixture(scope="module")
def pipe():
    made = FKSteeringPipeline(tiny.make_sd(), reward=redness)
    made.set_progress_bar_config(disable=True)
    return made


PROMPTS = ["a red circle", "two blue squares"]


def call(pipe, **options):
    options = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 2, **options}
    return pipe(PROMPTS, output_type="pt", **options)


@pytest.mark.parametrize("method", STRATEGIES)
def test_one_round_is_best_of_n_bit_for_bit(pipe, method):
    plain = call(pipe, search=BestOfN(num_particles=3), num_images_per_prompt=3)
    out = call(
        pipe,
        search=NoiseSearch(num_particles=3, num_rounds=1, strategy=method, reward_scale=10.0),
        num_images_per_prompt=3,
    )
    assert torch.equal(out.images, plain.images)
    assert torch.equal(out.rewards, plain.rewards)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
@pytest.mark.parametrize("method", STRATEGIES)
def test_in_a_pipeline(kind, method):
    stock = tiny.make_sd(scheduler=kind.from_config(tiny.make_sd().scheduler.config))
    stock.set_progress_bar_config(disable=True)
    pipe = FKSteeringPipeline(stock, reward=redness)
    config = NoiseSearch(num_particles=3, num_rounds=3, strategy=method, num_frequencies=2, reward_scale=10.0)
    out = call(pipe, search=config, num_images_per_prompt=2)
    trace = out.trace
    assert trace.cost.sample_steps == 2 * sample_steps(config, 2) == 2 * 3 * 3 * 2
    assert trace.cost.decodes == trace.cost.reward_calls == 2 * 3 * 3
    assert trace.search == "noise-search"
    assert [step.num_particles for step in trace.steps][-1] == 3
    torch.testing.assert_close(redness(out.images, None).view(2, 2), out.rewards, rtol=0, atol=1e-5)
    if method != "pcn":
        seen = torch.cat([step.rewards for step in trace.steps[:-1]], dim=1)
        torch.testing.assert_close(out.rewards, seen.sort(dim=1, descending=True).values[:, :2])
    else:
        assert "proposals were accepted" in trace.notes[0]
    again = call(pipe, search=config, num_images_per_prompt=2)
    assert torch.equal(again.images, out.images)


def test_a_budget_buys_rounds():
    config = NoiseSearch(num_particles=4, num_rounds=4)
    assert fit_budget(config, 100, 2) == replace(config, num_rounds=12)
    assert fit_budget(config, 10, 2) == replace(config, num_particles=2, num_rounds=2)
    assert fit_budget(config, 3, 2) == replace(config, num_particles=1, num_rounds=1)
    with pytest.raises(ValueError, match="needs at least 2, with 2 inference steps"):
        fit_budget(config, 1, 2)


def test_frequencies_of_packed_latents_are_refused():
    with pytest.raises(ValueError, match="use 'zero-order' or 'pcn'"):
        search(ToyRollout(bowl, (16, 4)), strategy="cem")


@pytest.mark.parametrize(
    "wrong",
    [{"strategy": "annealing"}, {"step_size": 0.0}, {"step_size": 1.5}, {"num_rounds": 0}, {"elite_share": 0.0}]
    + [{"reward_scale": -1.0}, {"num_frequencies": 0}, {"learning_rate": math.nan}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NoiseSearch(**wrong)
