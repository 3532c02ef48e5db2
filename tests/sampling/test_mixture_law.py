"""Every accepted scheduler keeps the distribution of an exact model, and docs/schedulers.md says how well."""

import itertools
import re

import pytest
import torch

from fk_reward.sampling.stochasticity import CONSISTENCY_SAMPLERS, require_stochastic
from fk_reward.sampling.x0_prediction import X0_PREDICTIONS, predict_x0
from scripts import scheduler_table
from scripts.scheduler_table import ACCEPTED, DISTILLED, MODE, REFUSED, SPREAD, exact_output, label, posterior_mean

PAGE = scheduler_table.PAGE.read_text(encoding="utf-8")
CASES = [
    pytest.param(row, kind, id=f"{row.scheduler.__name__}-{number}-{kind}")
    for number, row in enumerate(ACCEPTED)
    for kind in row.kinds
]
FEW = 20_000  # samples: standard errors of 0.5 % of the spread and 0.35 % of the mass


def documented(row, kind):
    """Errors of the spread in the docs, as fractions, one for each number of steps."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(label(row, kind) + " ")]
    return [float(number) / 100 for number in re.findall(r"([+-][\d.]+|[+-]nan) %", line)]


def keeps_the_law(errors):
    """At most 3 % at 50 steps, or an error that falls with the number of steps to at most 10 % at 200."""
    few, some, many = map(abs, errors)
    return some <= 0.03 or (many < some and many <= 0.1)


def test_the_posterior_mean_is_that_of_the_mixture():
    """Against the integral over a fine grid."""
    x0 = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    prior = sum(torch.exp(-((x0 - mode) ** 2) / (2 * SPREAD**2)) for mode in (-MODE, MODE))
    for alpha, sigma in ((0.1, 0.99), (0.6, 0.8), (0.95, 0.3), (1.0, 3.0)):
        for sample in (-2.5, -0.1, 0.0, 1.7):
            weights = prior * torch.exp(-((sample - alpha * x0) ** 2) / (2 * sigma**2))
            expected = (weights * x0).sum() / weights.sum()
            found = posterior_mean(torch.tensor(sample, dtype=torch.float64), alpha, sigma)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_accepted_schedulers_keep_the_law(row, kind):
    require_stochastic(row.build(kind), eta=row.step.get("eta"))
    assert keeps_the_law(documented(row, kind))


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_the_docs_say_what_is_measured(row, kind):
    error, mass = scheduler_table.law(row, kind, 20, size=FEW)
    assert error == pytest.approx(documented(row, kind)[0], abs=0.02)
    assert mass == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("row", [row for row in ACCEPTED if row.kinds == (None,)])
def test_the_default_of_flow_models_at_fifty_steps(row):
    error, _ = scheduler_table.law(row, None, 50, size=FEW)
    assert abs(error) < 0.04
    assert error == pytest.approx(documented(row, None)[1], abs=0.015)


@pytest.mark.parametrize("row", REFUSED)
def test_what_does_not_is_refused(row):
    (kind,) = row.kinds
    with pytest.raises(ValueError, match=re.escape(row.scheduler.__name__)):
        require_stochastic(row.build(kind))


def test_noise_added_to_a_predicted_mean_fails_the_same_test():
    """The saboteur: right in its first two moments at every level, and wrong within a mode however many the steps."""
    renoising = REFUSED[0]
    errors = [scheduler_table.law(renoising, None, num_steps, size=FEW)[0] for num_steps in (20, 50, 200)]
    assert not keeps_the_law(errors)
    assert errors == pytest.approx(documented(renoising, None), abs=0.02)


@pytest.mark.parametrize("row", DISTILLED)
def test_consistency_samplers_are_chosen_by_name(row):
    assert row.scheduler.__name__ in CONSISTENCY_SAMPLERS
    for kind in row.kinds:
        require_stochastic(row.build(kind), eta=row.step.get("eta"))
        assert len(documented(row, kind)) == 3


def test_the_tables_name_every_scheduler_that_can_be_read():
    named = {row.scheduler.__name__ for row in (*ACCEPTED, *DISTILLED, *REFUSED)}
    assert named == set(X0_PREDICTIONS)
    lines = {
        line for rows in (ACCEPTED, DISTILLED, REFUSED) for row in rows for line in (label(row, k) for k in row.kinds)
    }
    in_page = {match for match in re.findall(r"^(\| `\w+` \|.*?\| \w+ \|) [+-]", PAGE, flags=re.MULTILINE)}
    assert in_page == lines


@pytest.mark.parametrize(("row", "kind"), CASES)
def test_predict_x0_is_the_exact_denoiser(row, kind):
    """At every step, up to the rounding of timesteps to whole numbers (Karras levels, flow levels of DPM-Solver)."""
    rounded = any(row.config.get(name) for name in ("use_karras_sigmas", "use_flow_sigmas", "use_lu_lambdas"))
    worst = max(float((found - exact).abs().max()) for found, exact in _predictions(row, kind))
    assert worst < (0.2 if rounded else 1e-2)


def _predictions(row, kind):
    """x0_pred, and the posterior mean at the level of the timestep."""
    for scheduler, output, timestep, sample in scheduler_table.trajectory(row, kind, 20, size=512):
        if output is sample:  # the end
            return
        scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        alpha, sigma = scheduler_table.training_level(scheduler, timestep)
        found = predict_x0(scheduler, output, timestep, sample)
        seen = scale(sample, timestep)
        if row.scheduler.__name__.startswith("EDM"):
            seen = seen * (sigma**2 + scheduler.config.sigma_data**2) ** 0.5
        yield found, posterior_mean(seen, alpha, sigma)


def test_a_wrong_prediction_type_fails_the_same_check():
    row = ACCEPTED[0]
    steps = scheduler_table.trajectory(row, "v_prediction", 20, size=64)
    scheduler, output, timestep, sample = next(itertools.islice(steps, 10, None))
    scheduler.register_to_config(prediction_type="epsilon")
    exact = posterior_mean(sample, *scheduler_table.training_level(scheduler, timestep))
    assert float((predict_x0(scheduler, output, timestep, sample) - exact).abs().max()) > 0.05
    assert exact_output(row.build("sample"), sample, timestep).equal(exact)
