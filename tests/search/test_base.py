"""The base of searches that rank, and what a forecast says."""

import pytest
import torch

from fk_reward.search import FKSteeringConfig, Forecast, PlainPopulation, Pruning
from fk_reward.search.base import can_move, can_resize, forecast, num_finished


def test_selects_the_best_of_each_prompt():
    population = PlainPopulation(3, 2)
    population.finish(torch.tensor([0.1, 0.7, 0.7, 3.0, 2.0, 1.0]))
    assert population.select(2).tolist() == [[1, 2], [0, 1]]
    assert population.record() == {}


def test_allowed_images_repeat_where_too_few_are_allowed():
    population = PlainPopulation(3)
    population.finish(torch.tensor([-torch.inf, 1.0, -torch.inf]))
    assert population.select(2).tolist() == [[1, 1]]
    assert "Of the 3 finished images of prompt 0, 1 are allowed" in population.notes[0]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda p: p.select(1), RuntimeError, "call finish"),
        (lambda p: p.finish(torch.zeros(3)), ValueError, r"of shape \(2,\)"),
        (
            lambda p: p.finish(torch.tensor([0.0, torch.nan]), step=4),
            ValueError,
            "prompt 0, particle 1 at step 4 is nan",
        ),
        (lambda p: p.advance(torch.tensor([torch.inf, 0.0]), step=1), ValueError, "particle 0 at step 1 is inf"),
        (lambda p: p.finish(torch.full((2,), -torch.inf)), ValueError, "have a reward of -inf"),
        (lambda p: p.advance(torch.zeros(2), step=1, log_ratio=torch.zeros(2)), ValueError, "has no weights"),
        (lambda p: p.finish(torch.zeros(2), log_ratio=torch.zeros(2)), ValueError, "has no weights"),
        (lambda p: (p.finish(torch.zeros(2)), p.select(3)), ValueError, r"in \[1, 2\], got 3"),
    ],
)
def test_what_is_refused(act, error, message):
    with pytest.raises(error, match=message):
        act(PlainPopulation(2))


def test_a_forecast_of_a_population_that_grows_and_shrinks():
    course = Forecast.of(6, 2, {1: 8, 3: 8, 4: 2})
    assert (course.steps, course.scorings, course.finished) == ((2, 2, 8, 8, 8, 2), (2, 8, 8), 2)
    assert course.num_scored == 20
    assert course.resizes


def test_what_a_search_does_in_the_course_of_a_call():
    funnel = FKSteeringConfig(num_particles=4, final_particles=2)
    for config, moves, resizes, finished in (
        (FKSteeringConfig(), True, False, 4),
        (FKSteeringConfig(num_resamples=0), False, False, 4),
        (funnel, True, True, 2),
        (Pruning(), True, True, 4),
    ):
        population = config.population()
        assert (can_move(population), can_resize(population), num_finished(config)) == (moves, resizes, finished)
    assert forecast(funnel, 10) == funnel.population().forecast(10)


def test_abstaining_is_noted():
    population = PlainPopulation(2, abstain=True)
    population.finish(torch.full((2,), -torch.inf))
    assert "none is returned" in population.notes[0]
    assert population.select(2).tolist() == [[0, 1]]
