"""The mixture's closed forms, the law of FK steering with weighted rewards at K = 4, and the table."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.benchmarks import mixture
from examples.benchmarks.mixture import MixtureProblem, Searches, estimate_evidence, relative_variance, reward, steered
from fk_reward import FKSteeringConfig
from fk_reward.search import FKPopulation
from fk_reward.search.feynman_kac import PAPER

PROBLEM = MixtureProblem()
SHARED = Path(__file__).resolve().parents[3] / "shared" / "toy" / "exact_chain.py"


def exact():
    """Evidence, and what the tilted law says of the two coordinates and of the smaller mode, by quadrature."""
    points, masses = PROBLEM.tilted_masses()
    return torch.stack([masses.sum(), *(masses[:, None] * points).sum(0), masses[points[:, 0] < 0].sum()])


def deviations(population_type=FKPopulation, *, num_runs=3000, seed=0, **fields):
    """Standard errors by which Z, Z E[x], Z E[y] and Z P[x < 0] are off; all are unbiased at any K."""
    config = FKSteeringConfig(reward_scale=PROBLEM.reward_scale, **fields)
    population, sample = steered(PROBLEM, config, num_runs=num_runs, seed=seed, population_type=population_type)
    x = sample.view(num_runs, -1, 2)
    functions = torch.stack([torch.ones(x.shape[:2]).double(), x[..., 0], x[..., 1], (x[..., 0] < 0).double()])
    estimates = (population.weights * functions).sum(-1) * population.log_evidence.exp()
    return (estimates.mean(1) - exact()) / (estimates.std(1) / num_runs**0.5)


def assert_exact(population_type=FKPopulation, **settings):
    off = deviations(population_type, **settings)
    assert off.abs().max() < 4, f"off by {[f'{value:+.1f}' for value in off.tolist()]} standard errors"


def test_the_problem_is_the_one_of_the_shared_toy():
    if not SHARED.is_file():
        pytest.skip("needs the toy of ../shared")
    toy = runpy.run_path(str(SHARED))
    assert PROBLEM.evidence() == pytest.approx(toy["law"]()["evidence"], rel=1e-5)
    assert (float(exact()[3]) / PROBLEM.evidence()) == pytest.approx(toy["law"]()["left"], rel=1e-5)
    theirs, ours, sample = toy["exact_scheduler"](), PROBLEM.scheduler(), torch.randn(5, 2)
    assert torch.equal(theirs.timesteps, ours.timesteps)
    for timestep in ours.timesteps:
        expected = toy["model_output"](sample, theirs, timestep)
        got = PROBLEM.noise_prediction(sample.double(), float(ours.alphas_cumprod[int(timestep)]))
        torch.testing.assert_close(got.float(), expected, rtol=1e-4, atol=1e-4)


def test_the_chain_ends_in_the_mixture():
    population, sample = steered(PROBLEM, FKSteeringConfig(num_resamples=0, num_particles=1), num_runs=40000)
    points, masses = MixtureProblem(reward_scale=0.0).tilted_masses()
    assert population.log_weights.shape == (40000, 1)
    for function in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] ** 2, lambda x: (x[:, 0] < 0).double()):
        values = function(sample)
        assert abs(values.mean() - (masses * function(points)).sum()) < 4 * values.std() / 200


def variance_of_best_of(number):
    """Without resampling the relative variance is (E[w^2] / E[w]^2 - 1) / K."""
    points, masses = PROBLEM.tilted_masses()
    second = float((masses * torch.exp(PROBLEM.reward_scale * reward(points))).sum())
    return (second / PROBLEM.evidence() ** 2 - 1) / number


def test_best_of_k_has_its_closed_form():
    expected = variance_of_best_of(4)
    estimates = estimate_evidence(PROBLEM, FKSteeringConfig(num_resamples=0, reward_scale=1.2), num_runs=20000)
    got = relative_variance(estimates, PROBLEM.evidence())
    assert expected == pytest.approx(0.72, abs=0.05)
    assert abs(got["variance"] - expected) < 4 * got["variance_error"]


@pytest.mark.parametrize("reward_weight", ["rising", (0.1, 0.3, 0.0, 0.6)])
@pytest.mark.parametrize("potential", ["difference", "max", "sum", "immediate"])
def test_weighted_rewards_keep_the_target(potential, reward_weight):
    assert_exact(potential=potential, reward_weight=reward_weight, ess_threshold=0.7, resampling="ssp", num_runs=800)


@pytest.mark.long
def test_the_target_over_many_runs():
    assert_exact(potential="difference", reward_weight="rising", ess_threshold=1.0, num_runs=20000)


def assert_below_best_of_k(config, number, *, num_runs):
    """Its relative variance is below that of best of K by more than three standard errors; returns it."""
    config = replace(config, num_particles=number, reward_scale=PROBLEM.reward_scale)
    got = relative_variance(estimate_evidence(PROBLEM, config, num_runs=num_runs), PROBLEM.evidence())
    assert got["variance"] + 3 * got["variance_error"] < variance_of_best_of(number)
    return got["variance"]


@pytest.mark.parametrize(("number", "near", "num_runs"), [(4, 0.54, 6000), (16, 0.13, 1500)])
def test_the_default_is_below_best_of_k(number, near, num_runs):
    """And near what the shared toy says of `difference` on rising weights."""
    assert assert_below_best_of_k(FKSteeringConfig(), number, num_runs=num_runs) == pytest.approx(near, rel=0.15)


@pytest.mark.parametrize("number", [4, 16])
def test_the_settings_of_the_paper_are_not(number):
    with pytest.raises(AssertionError):
        assert_below_best_of_k(PAPER, number, num_runs=1500)


@pytest.mark.parametrize("name", Searches().configs)
def test_searches_that_are_compared_are_unbiased(name):
    setting = next(one for one in Searches().settings(PROBLEM) if one.told["method"] == name)
    estimates = estimate_evidence(PROBLEM, setting.config, num_runs=1000, lookahead=setting.lookahead, seed=1)
    got = relative_variance(estimates, PROBLEM.evidence())
    assert abs(got["bias"]) < 4 * got["bias_error"]


class ForgetsTheWeight(FKPopulation):
    """Saboteur: the terminal correction takes back what the rewards would have added without their weights."""

    def weigh(self, rewards, *, final=False, step=None, weight=1.0):
        before = self._applied
        super().weigh(rewards, final=final, step=step, weight=weight)
        if not final:
            self._applied = before + (self._applied - before) / max(weight, 0.1)


def test_a_correction_that_forgets_the_weights_is_caught():
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(ForgetsTheWeight, potential="difference", reward_weight="rising", ess_threshold=1.0)


def test_main_writes_a_row_for_each_setting(tmp_path, capsys):
    mixture.main(num_particles="2,3", num_runs=20, potentials="difference", thresholds="1.0", out=tmp_path)
    content = json.loads((tmp_path / "mixture.json").read_text(encoding="utf-8"))
    assert len(content["rows"]) == 2 * (1 + 2 * len(mixture.Grid.schedules))
    assert [row["num_particles"] for row in content["rows"]] == sorted(row["num_particles"] for row in content["rows"])
    assert "difference, rising" in capsys.readouterr().out


def test_main_compares_searches(tmp_path, capsys):
    mixture.main(compare="searches", num_particles="4", num_runs=20, out=tmp_path)
    rows = json.loads((tmp_path / "mixture.json").read_text(encoding="utf-8"))["rows"]
    assert {row["method"] for row in rows} == set(Searches().configs)
    cost = {row["method"]: row["sample_steps"] for row in rows}
    assert cost["fk, K/2 finished"] < cost["fk"] == cost["best of K"] == 4 * 12 < cost["fk, lookahead=3"]
    assert "schedule" not in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["0.2-0.8", "x4", "a-bx2"])
def test_a_schedule_of_another_form_is_refused(schedule):
    with pytest.raises(ValueError, match="0.2-0.8x4"):
        mixture.scoring(schedule)
