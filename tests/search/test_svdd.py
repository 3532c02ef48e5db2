"""SVDD: its law at any number of proposals, by enumeration, and what it reduces to."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from fk_reward import FKSteeringPipeline, steer
from fk_reward.search import SVDD, BeamSearch
from fk_reward.search.svdd import SVDDPopulation
from fk_reward.smc.resampling import one_of_each
from tests import tiny
from tests.search.test_beam import redness, toy_run

SCALE, NUM_CHAINS, NUM_STEPS = 1.5, 40_000, 4
START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MOVES = torch.tensor(
    [
        [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]],  # as the noise of a start, it says nothing of the end
        [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.4, 0.3, 0.3]],
        [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]],
    ],
    dtype=torch.float64,
)
REWARDS = torch.tensor([0.0, 0.8, 1.6], dtype=torch.float64)
RUSHED = REWARDS.repeat(NUM_STEPS, 1) * torch.tensor([0.0, 2.0, 0.2, 1.0], dtype=torch.float64)[:, None]
"""Rewards of the predictions of each step, which know the final reward badly."""


def soft_values():
    """log E[exp(SCALE r(x0)) | x] / SCALE, of each step and state: with these as rewards SVDD tends to the tilt."""
    values = [torch.exp(SCALE * REWARDS)]
    for move in MOVES.flip(0):
        values.insert(0, move @ values[0])
    return torch.stack(values).log() / SCALE


def chosen(move, values, number, scale=SCALE):
    """The transition of the soft choice among so many proposals: a sum over all counts of the three states in them."""
    law = torch.zeros_like(move)
    for first, second in itertools.product(range(number + 1), repeat=2):
        counts = torch.tensor([first, second, number - first - second]).double()
        if counts[2] < 0:
            continue
        ways = torch.exp(torch.lgamma(torch.tensor(number + 1.0).double()) - torch.lgamma(counts + 1).sum())
        weights = counts * torch.exp(scale * values)
        law += ways * (move**counts).prod(1, keepdim=True) * weights / weights.sum()
    return law


def exact(values, number, scale=SCALE):
    """Law of the finished state, (3,)."""
    law = START
    for move, of_proposals in zip(MOVES, values[1:], strict=True):
        law = law @ chosen(move, of_proposals, number, scale)
    return law


def plain():
    law = START
    for move in MOVES:
        law = law @ move
    return law


def tilted():
    law = plain() * torch.exp(SCALE * REWARDS)
    return law / law.sum()


def distance(law, other):
    return float((law - other).abs().sum() / 2)


class Chain(DDPMScheduler):
    """A chain of three states; the second number of a sample is noise, so that equal states are no equal copies."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        index = self.timesteps.tolist().index(int(timestep))
        state = sample[:, 0].long()
        if index < len(MOVES):
            state = torch.multinomial(MOVES[index][state], 1, generator=generator)[:, 0]
        moved = torch.stack([state.float(), torch.randn(len(state), generator=generator)], 1)
        return moved, model_output


def simulated(config, values, seed=0):
    """Shares of the finished states, of so many independent particles."""
    scheduler = Chain(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(NUM_STEPS)
    generator = torch.Generator().manual_seed(seed)
    state = torch.multinomial(START, config.num_particles, replacement=True, generator=generator)
    sample = torch.stack([state.float(), torch.zeros(len(state))], 1)
    population = config.population(generators=torch.Generator().manual_seed(seed + 1))
    with steer(scheduler, population, lambda x0_pred: x0_pred[:, 0]):
        for index, timestep in enumerate(scheduler.timesteps):
            output = values[index][sample[:, 0].long()].float()[:, None].expand(-1, 2)
            sample = scheduler.step(output, timestep, sample, generator=generator)[0]
    return torch.bincount(sample[:, 0].long(), minlength=3) / len(sample)


def config(number, scale=SCALE):
    return SVDD(num_particles=NUM_CHAINS, num_proposals=number, start=0.0, num_branchings=NUM_STEPS, reward_scale=scale)


@pytest.mark.parametrize("values", [RUSHED, soft_values()], ids=["rushed", "soft-values"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_law_at_a_finite_number_of_proposals(number, values):
    # the standard error of a share is at most .0025, and the sum of three deviations below 4 of them
    assert distance(simulated(config(number), values), exact(values, number)) < 0.0075


def test_a_law_of_another_number_of_proposals_or_of_another_scale_is_noticed():
    law = simulated(config(4), RUSHED)
    assert distance(law, exact(RUSHED, 2)) > 0.02
    assert distance(law, exact(RUSHED, 4, scale=2 * SCALE)) > 0.02
    assert distance(law, tilted()) > 0.02


def test_it_tends_to_the_tilted_law_with_soft_values_only():
    numbers = (1, 2, 4, 8, 16, 32)
    errors = [distance(exact(soft_values(), number), tilted()) for number in numbers]
    assert errors[0] == pytest.approx(distance(plain(), tilted()))
    halved = [after / before for before, after in itertools.pairwise(errors)]
    assert all(0.4 < ratio < 0.75 for ratio in halved), halved
    assert halved[-1] == pytest.approx(0.5, abs=0.03)  # as 1 / M
    assert errors[-1] < 0.02
    limit = START
    for move, values in zip(MOVES, RUSHED[1:], strict=True):
        weighted = move * torch.exp(SCALE * values)
        limit = limit @ (weighted / weighted.sum(1, keepdim=True))
    rushed = [distance(exact(RUSHED, number), limit) for number in numbers]
    assert rushed == sorted(rushed, reverse=True)
    assert 2 * rushed[-1] < distance(limit, tilted())  # another law, which the predictions alone cannot mend


def test_a_scale_of_zero_draws_the_plain_law():
    torch.testing.assert_close(exact(RUSHED, 4, scale=0.0), plain())
    assert distance(simulated(config(4, scale=0.0), RUSHED), plain()) < 0.0075


def test_one_proposal_is_the_plain_pipeline():
    pipe = tiny.make_sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    shared = {"num_inference_steps": 4, "output_type": "pt"}
    stock = pipe("a star", eta=1.0, generator=torch.Generator().manual_seed(0), **shared).images
    wrapped = FKSteeringPipeline(pipe, reward=redness)
    generator = torch.Generator().manual_seed(0)
    out = wrapped("a star", search="svdd", num_proposals=1, reward_scale=1.0, generator=generator, **shared)
    assert torch.equal(out.images, stock)


def test_a_large_scale_is_beam_search():
    places = {"num_particles": 2, "num_proposals": 3, "num_branchings": 4, "stop": 1.0}
    runs = [
        toy_run(search, num_groups=2, generator=torch.Generator().manual_seed(3))
        for search in (SVDD(reward_scale=1e9, **places), BeamSearch(**places))
    ]
    (sample, records, sizes), (best, others, _) = runs
    assert torch.equal(sample, best)
    assert [record.step for record in records] == [2, 5, 7, 9] == [record.step for record in others]
    assert sizes == [4, 4, *(7 * [12]), 4]


def test_prompts_do_not_touch_each_other():
    """The draws of a prompt depend on its own generator and rewards alone."""
    rewards = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))

    def drawn(groups):
        generators = [torch.Generator().manual_seed(group) for group in groups]
        population = SVDDPopulation(SVDD(num_particles=2, num_proposals=3, reward_scale=2.0), len(groups), generators)
        population.begin(10)
        population.advance(torch.zeros(2 * len(groups)), step=2)
        return population.advance(rewards[groups].flatten(), step=9).view(len(groups), -1) % 6

    assert torch.equal(drawn([0, 1])[1], drawn([1])[0])


def test_forbidden_proposals_are_drawn_only_where_all_are():
    population = SVDD(num_particles=2, num_proposals=2, num_branchings=2, reward_scale=0.0).population()
    population.begin(10)
    population.advance(torch.zeros(2), step=2)
    never = -torch.inf
    first, second = population.advance(torch.tensor([never, 1.0, never, never]), step=9).tolist()
    assert first == 1
    assert second in (2, 3)


def test_in_a_pipeline_with_several_prompts():
    pipe = tiny.make_sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    wrapped = FKSteeringPipeline(pipe, reward=redness)
    out = wrapped(
        ["a star", "a square"],
        search=SVDD(num_particles=2, num_proposals=3, num_branchings=3, reward_scale=10.0),
        num_inference_steps=6,
        num_images_per_prompt=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert [step.num_particles for step in out.trace.steps] == [2, 6, 6, 2]
    assert out.trace.search == "svdd"
    assert out.trace.cost.sample_steps == 2 * sum(SVDD(num_particles=2, num_proposals=3).population().forecast(6).steps)


def test_deterministic_schedulers_are_refused():
    wrapped = FKSteeringPipeline(tiny.make_sd(), reward=redness)
    wrapped.scheduler = EulerDiscreteScheduler.from_config(wrapped.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot be steered"):
        wrapped("a star", search="svdd", reward_scale=1.0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="reward_scale should be"):
        SVDD(reward_scale=-1.0)
    with pytest.raises(ValueError, match="num_proposals should be at least 1"):
        SVDD(num_proposals=0)


def test_one_of_each_draws_by_weight_and_never_what_weighs_nothing():
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = one_of_each(weights.log().expand(20_000, -1), generator)
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(shares, weights, rtol=0, atol=4 * 0.0036)
    assert shares[[1, 4]].tolist() == [0, 0]
    with pytest.raises(ValueError, match="log_weights should be finite or -inf"):
        one_of_each(torch.tensor([[torch.nan, 0.0]]), generator)
