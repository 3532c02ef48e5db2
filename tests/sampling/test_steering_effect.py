"""Settings that ask for resampling and cannot resample anything: said, or refused."""

from dataclasses import replace

import pytest

from fk_reward.search import FKPopulation
from tests.sampling.scheduler_cases import make_scheduler
from tests.sampling.test_steering import CONFIG, steered_loop


@pytest.mark.parametrize(("ess_threshold", "warned"), [(0.25, True), (0.26, False), (1.0, False)])
def test_a_threshold_that_the_ess_cannot_fall_below_is_warned_of(ess_threshold, warned, caplog):
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    steered_loop(scheduler, arguments, FKPopulation(replace(CONFIG, ess_threshold=ess_threshold)))
    assert any("nothing will be resampled: this is best of 4" in r.message for r in caplog.records) == warned


def test_no_such_warning_where_the_population_shrinks(caplog):
    scheduler, arguments = make_scheduler("ddim", "epsilon")
    config = replace(CONFIG, ess_threshold=0.25, final_particles=2)
    _, records = steered_loop(scheduler, arguments, FKPopulation(config))
    assert any(record.ancestors is not None for record in records)
    assert not caplog.records


def test_a_trajectory_too_short_to_be_scored(caplog):
    scheduler, arguments = make_scheduler("ddim", "epsilon", num_steps=1)
    _, records = steered_loop(scheduler, arguments, FKPopulation(CONFIG))
    assert records == []
    assert any("1 step has no scoring step, so nothing" in record.message for record in caplog.records)
    with pytest.raises(ValueError, match="final_particles needs a scoring step"):
        steered_loop(scheduler, arguments, FKPopulation(replace(CONFIG, final_particles=2)))
