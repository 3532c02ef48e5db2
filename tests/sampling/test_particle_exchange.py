"""Particles spread over processes: threads stand in for them here, tests/pipelines has real ones."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
import torch

from fk_reward import steer
from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.process_link import ProcessFailure, ProcessLink
from fk_reward.search import FKPopulation
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.steering_configs import early

GROUPS, PARTICLES, PROCESSES = 2, 4, 2
CONFIG = early(num_particles=PARTICLES, potential="immediate", ess_threshold=1.0, resample_start=0.0, num_resamples=9)


class Board:
    """Where the threads lay down their rows for each other."""

    def __init__(self):
        self.rows = [None] * PROCESSES
        self.barrier = threading.Barrier(PROCESSES, timeout=30)

    def gather(self, process, rows):
        self.rows[process] = rows
        self.barrier.wait()
        everything = torch.cat(self.rows)
        self.barrier.wait()
        return everything


@dataclass(frozen=True, kw_only=True)
class ThreadExchange(ParticleExchange):
    board: Board = field(default_factory=Board)

    def _gather(self, rows):
        return self.board.gather(self.process, rows)


def test_share_of_a_population():
    exchange = ParticleExchange(num_groups=2, num_particles=8, num_processes=2)
    assert (exchange.num_own, exchange.share(8), exchange.share(2)) == (4, 4, 1)


def score(x0_pred):
    return 3.0 * x0_pred.mean(dim=(1, 2, 3)).float()


def steered_loop(case, exchange, *, score_fn=score):
    scheduler, arguments = make_scheduler(*case)
    sample = exchange.own(initial_sample(scheduler, GROUPS * PARTICLES))
    slots = exchange.own(torch.arange(GROUPS * PARTICLES)).tolist()
    generators = [torch.Generator().manual_seed(100 + slot) for slot in slots]
    particle_filter = FKPopulation(CONFIG, GROUPS, torch.Generator().manual_seed(5))
    with steer(scheduler, particle_filter, score_fn, exchange=exchange) as records:
        for timestep in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
            sample = scheduler.step(output, timestep, sample, generator=generators, **arguments).prev_sample
    return sample, records, particle_filter


def spread_loop(case, exchange_class=ThreadExchange, store=None, **options):
    board = Board()
    links = [None if store is None else ProcessLink(store, process, PROCESSES) for process in range(PROCESSES)]
    places = [
        exchange_class(
            num_groups=GROUPS,
            num_particles=PARTICLES,
            num_processes=PROCESSES,
            process=process,
            board=board,
            link=links[process],
        )
        for process in range(PROCESSES)
    ]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return [pool.submit(steered_loop, case, place, **options) for place in places], places


def alone(case):
    return steered_loop(case, ParticleExchange(num_groups=GROUPS, num_particles=PARTICLES))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_two_processes_do_what_one_does(name, kind):
    check_two_processes((name, kind), ThreadExchange)


def check_two_processes(case, exchange_class):
    expected, expected_records, expected_filter = alone(case)
    futures, places = spread_loop(case, exchange_class)
    crossed = False
    for future, place in zip(futures, places, strict=True):
        sample, records, particle_filter = future.result()
        torch.testing.assert_close(sample, place.own(expected), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(particle_filter.log_weights, expected_filter.log_weights)
        for record, other in zip(records, expected_records, strict=True):
            assert torch.equal(record.ancestors, other.ancestors)
            crossed |= bool(((record.ancestors // 2) != (torch.arange(PARTICLES) // 2)).any())
    assert crossed, "no particle moved from one process to the other"


@dataclass(frozen=True, kw_only=True)
class Forgetful(ThreadExchange):
    """Takes the ancestors from its own particles only."""

    def take(self, rows, ancestors):
        self.gather(rows)
        return rows[self.own(ancestors).to(rows.device) % len(rows)]


def test_particles_that_are_not_sent_fail_the_same_check():
    with pytest.raises(AssertionError):
        check_two_processes(("ddim", "epsilon"), Forgetful)


def test_a_failure_in_one_process_ends_all():
    first = threading.Lock()

    def fails_once(x0_pred):
        if first.acquire(blocking=False):
            raise ValueError("the image is black")
        return score(x0_pred)

    futures, _ = spread_loop(("ddim", "epsilon"), score_fn=fails_once, store=torch.distributed.HashStore())
    own, told = sorted((future.exception() for future in futures), key=lambda error: isinstance(error, ProcessFailure))
    assert "the image is black" in str(own)
    assert re.search(r"Rank \d, which shares .* has failed: ValueError: At step .* the image is black", str(told))


def test_rows_are_kept_by_prompt():
    places = [replace(ParticleExchange(num_groups=2, num_particles=6, num_processes=3), process=p) for p in range(3)]
    rows = torch.arange(12)
    assert [place.own(rows).tolist() for place in places] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_an_uneven_share_is_refused():
    with pytest.raises(ValueError, match="6 particles cannot be shared by 4 processes"):
        ParticleExchange(num_groups=1, num_particles=6, num_processes=4)
