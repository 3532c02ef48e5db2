"""The table of the Gaussian benchmark; that the sampler is right is tested in tests/smc/test_gaussian_smc.py."""

from __future__ import annotations

import json

import pytest

from examples.benchmarks import gaussian
from examples.benchmarks.gaussian import GaussianProblem
from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.resampling import RESAMPLERS


def test_main_writes_a_row_for_each_setting(tmp_path, capsys):
    gaussian.main(num_particles="8,32", num_runs=2, out=tmp_path)
    content = json.loads((tmp_path / "gaussian.json").read_text(encoding="utf-8"))
    assert len(content["rows"]) == len(POTENTIALS) * len(RESAMPLERS) * 2 * 2
    assert sum("slope" in row for row in content["rows"]) == len(content["rows"]) / 2
    assert set(content["exact"]) == set(gaussian.QUANTITIES)
    assert "multinomial" in capsys.readouterr().out


def test_slope_of_a_known_power_law():
    names = [f"{quantity}_rmse" for quantity in gaussian.QUANTITIES]
    setting = {"potential": "max", "resampling": "ssp", "ess_threshold": 0.5}
    rows = [setting | {"num_particles": size} | dict.fromkeys(names, size**-0.5) for size in (10, 100, 1000)]
    gaussian.add_slopes(rows)
    assert rows[-1]["slope"] == pytest.approx(-0.5)
    assert "slope" not in rows[0]


def test_the_same_seed_gives_the_same_rows():
    def rows(seed):
        options = {"num_particles": [16], "num_runs": 2, "potentials": ["max"], "resamplers": ["systematic"]}
        return [row["mean_bias"] for row in gaussian.run_benchmark(GaussianProblem(num_steps=5), seed=seed, **options)]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
