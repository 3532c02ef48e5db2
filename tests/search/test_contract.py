"""What a search answers is checked where it is used, by the name of its class."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler

from fk_reward import FKSteeringConfig, FKSteeringPipeline, steer
from fk_reward.search import PlainPopulation, load_search
from fk_reward.search.contract import check_ancestors, record_of
from tests import tiny


class Copying(PlainPopulation):
    """A population that may copy and grow to four."""

    copies = True

    def __init__(self, num_now, num_groups=1, max_particles=4):
        super().__init__(num_now, num_groups, max_particles=max_particles)


@pytest.mark.parametrize(
    ("ancestors", "population", "error", "message"),
    [
        ([0, 1], Copying(2), TypeError, "Copying: ancestors should be a tensor of int64, or None, got list"),
        (torch.tensor([0.0, 1.0]), Copying(2), TypeError, "got torch.float32"),
        (torch.tensor([[0, 1]]), Copying(2), ValueError, r"of shape \(G \* K'\)"),
        (torch.tensor([], dtype=torch.int64), Copying(2), ValueError, "of shape"),
        (torch.tensor([0, 1, 2]), Copying(2, 2), ValueError, "as many for each of 2"),
        (torch.tensor([0, 2]), Copying(2), ValueError, "one of the particles 0 to 1 of its prompt, got 2"),
        (
            torch.tensor([0, 1, 1, 2]),
            Copying(2, 2),
            ValueError,
            "particle 0 of prompt 1 .* 2 to 3 of its prompt, got 1",
        ),
        (torch.tensor([0, -1]), Copying(2), ValueError, "got -1"),
        (torch.tensor([0, 1, 0]), Copying(2), ValueError, "has 2 particles after this step, and its ancestors leave 3"),
        (None, Copying(3), ValueError, "has 3 particles after this step, and its ancestors leave 2"),
        (torch.tensor([0, 0, 0, 1, 1]), Copying(5), ValueError, "grows to 5 particles .* max_particles is 4"),
        (torch.tensor([1, 1]), PlainPopulation(2), ValueError, "copies particles of prompt 0, and says copies=False"),
    ],
)
def test_saboteurs(ancestors, population, error, message):
    with pytest.raises(error, match=message):
        check_ancestors(ancestors, population, 2)


def test_what_fits():
    check_ancestors(None, Copying(2), 2)
    check_ancestors(torch.tensor([0, 0, 1, 3, 3, 2]), Copying(3, 2), 2)
    check_ancestors(torch.tensor([1]), PlainPopulation(1), 2)


@dataclass(frozen=True)
class Written:
    """A search as a user writes it."""

    make: Callable
    num_particles: int = 2
    default_eta = None

    def population(self, num_groups=1, generators=None, *, spread=None):
        return self.make(num_groups)

    def to_dict(self):
        return {"num_particles": self.num_particles}


def written(num_particles=2, max_particles=None, **methods):
    """A search of this many particles whose population answers what a test wants, by the name of the method."""

    def constant(answer):
        return answer if callable(answer) or isinstance(answer, bool | list | str) else lambda *_, **__: answer

    kind = type("Odd", (PlainPopulation,), {name: constant(answer) for name, answer in methods.items()})
    return Written(lambda groups: kind(num_particles, groups, max_particles=max_particles), num_particles)


def moving(ancestors, **more):
    def advance(population, rewards, *, step, log_ratio=None):
        population.num_particles = len(ancestors)
        return torch.tensor(ancestors)

    return written(advance=advance, **more)


def steps(*numbers):
    return lambda population, num_steps: numbers


@pytest.fixture(scope="module")
def pipe():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=lambda images, prompts: images[:, 0].mean(dim=(1, 2)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


STEPS = r"Odd.scoring_steps\((4|1000)\)"
ODD = {
    "another prompt": (
        moving([0, 2], sizes=lambda *_: {1: 2}),
        ValueError,
        "particle 1 of prompt 0 .* 0 to 1 of its prompt, got 2",
    ),
    "negative": (moving([-1, 1], sizes=lambda *_: {1: 2}), ValueError, "Odd: .*got -1"),
    "copies": (
        moving([0, 0], sizes=lambda *_: {1: 2}),
        ValueError,
        "Odd copies particles of prompt 0, and says copies=False",
    ),
    "too many": (moving([0, 1, 0], sizes=lambda *_: {1: 2}), ValueError, "Odd grows to 3"),
    "two sides": (
        written(sizes=lambda *_: {1: 2}, advance=torch.tensor([[0, 1]])),
        ValueError,
        "Odd: ancestors .*of shape",
    ),
    "size not told": (
        written(sizes=lambda *_: {1: 1}, advance=torch.tensor([0])),
        ValueError,
        "Odd says .* 2 particles .* leave 1",
    ),
    "unforeseen size": (moving([1], scoring_steps=steps(1)), ValueError, "Odd has 1 .* forecast has 2 at all steps"),
    "above forecast": (
        moving([0, 1], sizes=lambda *_: {1: 1}),
        ValueError,
        "Odd has 2 .* after step 1, .*forecast has 1 at most",
    ),
    "step of no run": (written(sizes=lambda _, n: {n: 2}), ValueError, STEPS + r"\[0\] should be at most"),
    "step before": (written(scoring_steps=steps(-1)), ValueError, STEPS + r"\[0\] should be at least 0, got -1"),
    "half a step": (written(scoring_steps=steps(1.5)), TypeError, STEPS + r"\[0\] should be an int, got 1.5"),
    "step of nan": (written(scoring_steps=steps(torch.nan)), TypeError, STEPS + r"\[0\] should be an int, got nan"),
    "steps descend": (written(scoring_steps=steps(2, 1)), ValueError, STEPS + r" should ascend, got \[2, 1\]"),
    "a step twice": (written(scoring_steps=steps(1, 1)), ValueError, STEPS + " should ascend"),
    "no steps": (written(scoring_steps=lambda *_: None), TypeError, STEPS + " should be a list of ints, got NoneType"),
    "select": (written(select=torch.tensor([[2]])), ValueError, r"Odd.select\(1\) .* from 0 to 1, got \[\[2\]\]"),
    "select negative": (written(select=torch.tensor([[-1]])), ValueError, r"Odd.select\(1\) .*got \[\[-1\]\]"),
    "select too many": (
        written(select=torch.tensor([[0, 1]])),
        ValueError,
        r"Odd.select\(1\) should be of shape \(1, 1\)",
    ),
    "select float": (written(select=torch.tensor([[1.0]])), TypeError, r"Odd.select\(1\) should be a tensor of int64"),
    "record None": (written(record=lambda _: None), TypeError, r"Odd.record\(\) should be a mapping .*got NoneType"),
    "record unknown": (
        written(record=lambda _: {"logweights": torch.zeros(1, 2)}),
        TypeError,
        "'logweights' is not known. Did you mean 'log_weights'",
    ),
    "record shape": (
        written(record=lambda _: {"ess": torch.ones(2).double()}),
        ValueError,
        r"ess should be of shape \(1,\)",
    ),
    "record float32": (
        written(record=lambda _: {"ess": torch.ones(1)}),
        TypeError,
        "ess should be a tensor of float64",
    ),
    "record nan": (
        written(record=lambda _: {"ess": torch.full((1,), torch.nan).double()}),
        ValueError,
        "ess holds NaN",
    ),
    "no population": (Written(lambda _: None), TypeError, "NoneType is no Population: it has no num_groups"),
    "other size": (
        Written(lambda groups: PlainPopulation(3, groups)),
        ValueError,
        "begins with 3 .* num_particles = 2",
    ),
    "no size": (Written(lambda groups: PlainPopulation(2.5, groups)), TypeError, "num_particles should be an int"),
    "small maximum": (written(max_particles=1), ValueError, "Odd.max_particles should be at least 2, got 1"),
    "forecast None": (written(forecast=lambda *_: None), TypeError, r"Odd.forecast\(1000\) should be a Forecast"),
    "notes of letters": (written(notes="abc"), TypeError, "Odd.notes should be a list of sentences, got str"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers_are_refused_by_name_in_a_pipeline(name, pipe):
    search, error, message = ODD[name]
    with pytest.raises(error, match=message):
        pipe("a star", search=search, num_inference_steps=4)


def test_an_ordinary_one_runs(pipe):
    out = pipe(["a star", "a square"], search=written(sizes=lambda *_: {1: 2}), num_inference_steps=4)
    assert [step.num_particles for step in out.trace.steps] == [2, 2]


def test_prompts_that_are_left_out(pipe):
    with pytest.raises(ValueError, match=r"Written.population\(2\) made PlainPopulation of 1 prompts"):
        pipe(["a star", "a square"], search=Written(lambda _: PlainPopulation(2)), num_inference_steps=4)


def test_a_config_without_an_eta_is_no_search():
    kind = dataclass(type("Bare", (), {"population": lambda self: None}))
    with pytest.raises(TypeError, match="Bare is no search: it has no num_particles and no default_eta"):
        load_search(kind())


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (torch.tensor([0.0, torch.nan]), "prompt 0, particle 1 at step 1 is nan"),
        (torch.tensor([torch.inf, 0.0]), "prompt 0, particle 0 at step 1 is inf"),
        (torch.zeros(2, 1), r"rewards should be of shape \(2,\) .* got \(2, 1\)"),
    ],
)
def test_a_population_never_gets_a_reward_that_is_none(rewards, message):
    population = written(scoring_steps=steps(1), advance=lambda *_, **__: pytest.fail("advance was called")).make(1)
    scheduler, sample = DDIMScheduler(clip_sample=False), torch.zeros(2, 1, 2, 2)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=message), steer(scheduler, population, lambda x0_pred: rewards):
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample


def test_what_fk_steering_records_is_in_order():
    population = FKSteeringConfig(num_particles=2, reward_weight="constant").population(3)
    population.begin(10)
    population.advance(torch.zeros(6), step=2)
    assert record_of(population, 2)["log_weights"].shape == (3, 2)
