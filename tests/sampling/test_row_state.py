"""What has a row for each particle follows it."""

import pytest
import torch

from fk_reward.sampling.row_state import GeneratorRows, SchedulerHistory


def test_history_grows_and_shrinks():
    class Scheduler:
        pass

    scheduler = Scheduler()
    scheduler.ets, scheduler.sigmas, scheduler.last = [torch.arange(4.0).view(2, 2)], torch.zeros(2), (torch.eye(2), 3)
    SchedulerHistory(scheduler).gather(lambda rows: rows[[0, 0, 1]], 2)
    assert [len(scheduler.ets[0]), len(scheduler.sigmas), len(scheduler.last[0])] == [3, 2, 3]
    SchedulerHistory(scheduler).gather(lambda rows: rows[[2]], 3)
    assert scheduler.ets[0].tolist() == [[2.0, 3.0]]


def generators(number):
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def test_generators_go_with_particles_that_are_not_copied():
    rows, given = GeneratorRows(2, 3, copies=False), generators(6)
    rows.gather(torch.tensor([0, 2, 4, 5]), 2)
    assert rows.of(given) == [given[0], given[2], given[4], given[5]]
    rows.gather(torch.tensor([1, 2]), 1)
    assert rows.of(given) == [given[2], given[4]]


def test_generators_of_slots_stay_where_particles_are_copied():
    rows, given = GeneratorRows(2, 2, copies=True), generators(4)
    rows.gather(torch.tensor([1, 3]), 1)
    assert rows.of(given) == [given[0], given[2]]
    rows.gather(torch.tensor([0, 0, 0, 1, 1, 1]), 3)
    first = rows.of(given)
    assert (first[:2], first[3:5]) == (given[:2], given[2:])
    assert rows.of(given)[2] is first[2]  # goes on, and is not begun again at every step
    states = {generator.initial_seed() for generator in first}
    assert len(states) == 6
    again = GeneratorRows(2, 2, copies=True)
    again.gather(torch.tensor([0, 0, 0, 1, 1, 1]), 3)
    assert [g.initial_seed() for g in again.of(generators(4))] == [g.initial_seed() for g in first]


def test_copies_draw_other_noise_in_the_next_call_with_the_same_generators():
    given, drawn = generators(1), []
    for _ in range(2):
        rows = GeneratorRows(1, 1, copies=True)
        rows.gather(torch.tensor([0, 0]), 2)
        drawn.append([torch.randn(1, generator=generator).item() for generator in rows.of(given)])
    assert len({*drawn[0], *drawn[1]}) == 4


@pytest.mark.parametrize("generator", [None, torch.Generator(), [torch.Generator()]])
def test_one_generator_stays_as_it_is(generator):
    rows = GeneratorRows(1, 2, copies=False)
    rows.gather(torch.tensor([1]), 1)
    assert rows.of(generator) is generator
