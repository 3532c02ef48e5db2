"""Correctness of the sampler: steer a Gaussian whose tilted mean and evidence are known, and print the errors."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Generator, Tensor

from fk_reward.benchmarks.report import Column, show_table, write_json
from fk_reward.benchmarks.statistics import log_log_slope, mean_and_error, root_mean_square
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.output_folder import hold_folder
from fk_reward.sampling.steering import steer
from fk_reward.search.feynman_kac import FKPopulation, FKSteeringConfig
from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.resampling import RESAMPLERS
from fk_reward.terminal import say
from fk_reward.value_checks import parse_integers, whole_number


@dataclass(frozen=True)
class TiltedGaussian:
    """`p(x) exp(reward_scale * r(x))`, normalised, in closed form.

    Attributes:
        mean: of the normalised density.
        variance: of the normalised density.
        log_evidence: logarithm of the normalising constant, `log E_p[exp(reward_scale * r(x))]`.
    """

    mean: float
    variance: float
    log_evidence: float


@dataclass(frozen=True, kw_only=True)
class GaussianProblem:
    """Data `N(mean, variance)`, a DDIM chain with eta 1 and the exact noise, and the reward `-(x - goal)^2 / 2`.

    The discrete chain does not end exactly in the data's distribution. `final_marginal` follows the chain that is
    simulated, so that the difference between an estimate and `tilted` is the error of the particle filter alone.

    Attributes:
        mean: of the data.
        variance: of the data, above 0.
        goal: where the reward is highest, 0.
        num_steps: scheduler steps.

    Example:
        >>> tilted = GaussianProblem().tilted(2.0)
        >>> round(tilted.mean, 2), round(tilted.variance, 2), round(tilted.log_evidence, 2)
        (1.91, 0.23, -2.49)
    """

    mean: float = 1.0
    variance: float = 0.5
    goal: float = 3.0
    num_steps: int = 50

    def scheduler(self) -> DDIMScheduler:
        """A fresh scheduler, its timesteps set."""
        # "trailing" starts at the last training step, whose marginal is the standard normal that samples come from.
        scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(self.num_steps)
        return scheduler

    def noise_prediction(self, sample: Tensor, alpha_bar: Tensor) -> Tensor:
        """`E[noise | x_t]`, from `E[x_0 | x_t]`.

        Args:
            sample: x_t, of any shape.
            alpha_bar: of its timestep, 0-dimensional.
        """
        alpha = alpha_bar.sqrt()
        gain = self.variance * alpha / (self.variance * alpha_bar + 1 - alpha_bar)
        x0_pred = self.mean + gain * (sample - alpha * self.mean)
        return (sample - alpha * x0_pred) / (1 - alpha_bar).sqrt()

    def reward(self, x0: Tensor) -> Tensor:
        """`-(x - goal)^2 / 2` of samples `(B, 1, 1, 1)`, as `(B,)`."""
        return -0.5 * (x0.flatten() - self.goal).square()

    def final_marginal(self) -> tuple[float, float]:
        """Mean and variance at the end of the chain, without steering.

        Each step is affine in the sample and in the noise. Its three coefficients are read from the scheduler itself,
        by stepping from sample 0 and 1 with noise 0 and 1.
        """
        scheduler, mean, variance = self.scheduler(), 0.0, 1.0
        sample = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        noise = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        for timestep in scheduler.timesteps:
            noise_pred = self.noise_prediction(sample, scheduler.alphas_cumprod[timestep].double())
            moved = scheduler.step(noise_pred, timestep, sample, eta=1.0, variance_noise=noise).prev_sample
            offset, slope, scale = (float(v) for v in (moved[0], moved[1] - moved[0], moved[2] - moved[0]))
            mean, variance = offset + slope * mean, slope**2 * variance + scale**2
        return mean, variance

    def tilted(self, reward_scale: float) -> TiltedGaussian:
        """The distribution that steering should sample from."""
        mean, variance = self.final_marginal()
        shrinkage = 1 + reward_scale * variance
        return TiltedGaussian(
            mean=(mean + reward_scale * variance * self.goal) / shrinkage,
            variance=variance / shrinkage,
            log_evidence=-0.5 * math.log(shrinkage) - 0.5 * reward_scale * (mean - self.goal) ** 2 / shrinkage,
        )


QUANTITIES = ("mean", "variance", "log_evidence")
ESS_THRESHOLDS = (0.5, 1.0)  # the default, and resampling at every scoring step

COLUMNS = (
    Column("potential"),
    Column("resampling"),
    Column("ess_threshold", "ESS rule", "{:g}"),
    Column("num_particles", "K", "{:d}"),
    Column("mean_bias", "mean: error ± se", "{:+.3f} ± {:.3f}", ("mean_error",)),
    Column("variance_bias", "variance", "{:+.3f} ± {:.3f}", ("variance_error",)),
    Column("log_evidence_bias", "log evidence", "{:+.3f} ± {:.3f}", ("log_evidence_error",)),
    Column("slope", style="{:+.2f}"),
)


@dataclass(frozen=True)
class GaussianEstimates:
    """Estimates of R independent steered runs of the tilted distribution; each tensor is `(R,)` float64."""

    mean: Tensor
    variance: Tensor
    log_evidence: Tensor


def estimate_tilt(
    problem: GaussianProblem,
    config: FKSteeringConfig,
    *,
    num_runs: int,
    seed: int = 0,
    filter_type: type[FKPopulation] = FKPopulation,
) -> GaussianEstimates:
    """Run the complete sampler, `steer` on a Diffusers scheduler, and estimate from the weighted particles.

    Args:
        problem: the diffusion and its reward.
        config: settings of the sampler.
        num_runs: R, independent populations, run side by side as the groups of one particle filter.
        seed: of the noise and of the resampling.
        filter_type: class of the particle filter.

    Returns:
        Weighted mean and variance of the final particles and the log-evidence, one each a run.

    Example:
        >>> config = FKSteeringConfig(num_particles=64, reward_scale=2.0)
        >>> estimates = estimate_tilt(GaussianProblem(), config, num_runs=2)
        >>> estimates.mean.shape
        torch.Size([2])
    """
    scheduler = problem.scheduler()
    noise = Generator().manual_seed(seed)
    draws = [Generator().manual_seed(seed + 1 + run) for run in range(num_runs)]
    particle_filter = filter_type(config, num_runs, draws)
    sample = torch.randn(num_runs * config.num_particles, 1, 1, 1, generator=noise)
    with steer(scheduler, particle_filter, problem.reward):
        for timestep in scheduler.timesteps:
            noise_pred = problem.noise_prediction(sample, scheduler.alphas_cumprod[timestep])
            sample = scheduler.step(noise_pred, timestep, sample, eta=1.0, generator=noise).prev_sample
    particle_filter.weigh(problem.reward(sample), final=True)
    return _read_off(particle_filter, sample)


def _read_off(particle_filter: FKPopulation, sample: Tensor) -> GaussianEstimates:
    weights = particle_filter.weights
    x = sample.double().view_as(weights)
    mean = (weights * x).sum(1)
    return GaussianEstimates(
        mean=mean,
        variance=(weights * (x - mean[:, None]).square()).sum(1),
        log_evidence=particle_filter.log_evidence,
    )


def compare(estimates: GaussianEstimates, exact: TiltedGaussian) -> dict[str, float]:
    """Bias (average of the runs minus the exact value), standard error of that average, and RMSE of one run.

    Example:
        >>> ones = torch.ones(4, dtype=torch.float64)
        >>> compare(GaussianEstimates(ones, ones, ones), TiltedGaussian(1.5, 1.0, 1.0))["mean_bias"]
        -0.5
    """
    row = {}
    for quantity in QUANTITIES:
        deviations = (getattr(estimates, quantity) - getattr(exact, quantity)).tolist()
        row[f"{quantity}_bias"], row[f"{quantity}_error"] = mean_and_error(deviations)
        row[f"{quantity}_rmse"] = root_mean_square(deviations)
    return row


def run_benchmark(
    problem: GaussianProblem,
    *,
    num_particles: Sequence[int],
    num_runs: int,
    reward_scale: float = 2.0,
    seed: int = 0,
    potentials: Sequence[str] = tuple(POTENTIALS),
    resamplers: Sequence[str] = tuple(RESAMPLERS),
) -> list[dict[str, Any]]:
    """One row for each potential, resampler, ESS rule and number of particles.

    Example:
        >>> rows = run_benchmark(GaussianProblem(num_steps=4), num_particles=[8], num_runs=2, potentials=["max"])
        >>> len(rows)  # five resamplers, two ESS rules
        10
    """
    exact = problem.tilted(reward_scale)
    rows: list[dict[str, Any]] = []
    for potential, resampling, ess_threshold, size in product(potentials, resamplers, ESS_THRESHOLDS, num_particles):
        config = FKSteeringConfig(
            num_particles=size,
            potential=potential,
            reward_scale=reward_scale,
            resampling=resampling,
            ess_threshold=ess_threshold,
        )
        start = time.perf_counter()
        row = compare(estimate_tilt(problem, config, num_runs=num_runs, seed=seed), exact)
        seconds = time.perf_counter() - start
        setting = {"potential": potential, "resampling": resampling, "ess_threshold": ess_threshold}
        rows.append(setting | {"num_particles": size} | row | {"seconds": seconds})
    return rows


def add_slopes(rows: Sequence[dict[str, Any]]) -> None:
    """Add the `slope` of log RMSE in log K, averaged over mean, variance and log evidence, to each setting's last row.

    An error that falls like 1/sqrt(K) has -0.5. Nothing is added to a setting with a single number of particles.

    Args:
        rows: of `run_benchmark`; changed in place.
    """
    names = ("potential", "resampling", "ess_threshold")
    settings = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    for setting in settings:
        ours = [row for row in rows if tuple(row[name] for name in names) == setting]
        sizes = [row["num_particles"] for row in ours]
        if len(sizes) > 1:
            each = [log_log_slope(sizes, [row[f"{quantity}_rmse"] for row in ours]) for quantity in QUANTITIES]
            ours[-1]["slope"] = sum(each) / len(each)


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    num_particles: str = "250,1000,4000",
    num_runs: int = 12,
    reward_scale: float = 2.0,
    seed: int = 0,
    out: OutOption = Path("results/gaussian"),
) -> None:
    """Compare the sampler with a tilted Gaussian in closed form; print a table and write `gaussian.json`.

    Args:
        num_particles: Numbers of particles, separated by commas.
        num_runs: Independent runs of each setting, at least 2.
        reward_scale: Lambda.
        seed: Seed of all runs.
        out: Folder of the results.
    """
    whole_number("--num-runs", num_runs, minimum=2)
    sizes = parse_integers("num_particles", num_particles)
    options: dict[str, Any] = {"num_runs": num_runs, "reward_scale": reward_scale, "seed": seed}
    with hold_folder(out):
        say(f"Results: {write_json(out / 'gaussian.json', _report(sizes, options))}")


def _report(sizes: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """Run all settings, print their table, and return the content of the file."""
    problem = GaussianProblem()
    rows = run_benchmark(problem, num_particles=sizes, **options)
    add_slopes(rows)
    exact = problem.tilted(options["reward_scale"])
    target = f"mean {exact.mean:.4f}, variance {exact.variance:.4f}, log evidence {exact.log_evidence:.4f}"
    show_table(
        f"{options['num_runs']} runs each; exact: {target}; slope of the error in K: -0.5 is right", COLUMNS, rows
    )
    return {"problem": asdict(problem), **options, "exact": asdict(exact), "rows": rows}


if __name__ == "__main__":
    run_script(main)
