"""Which settings, and which searches, estimate best? Steer a two-mode mixture whose evidence is known.

The chain is exact: each step draws from the mixture's own p(x_{t-1} | x_t), so that no part of an error is the
solver's. The relative variance of the evidence says how well a method uses its K particles: the mass of every event
under the steered law is a ratio of such estimates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Generator, Tensor

from fk_reward.benchmarks.report import Column, show_table, write_json
from fk_reward.benchmarks.statistics import mean_and_error
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.output_folder import hold_folder
from fk_reward.sampling.lookahead import LookAhead
from fk_reward.sampling.steering import steer
from fk_reward.search.budget import resized, sample_steps
from fk_reward.search.feynman_kac import PAPER, FKPopulation, FKSteeringConfig
from fk_reward.search.gradient_fk import GradientFKConfig
from fk_reward.search.moves import MovingSearch
from fk_reward.smc.potentials import POTENTIALS
from fk_reward.terminal import say
from fk_reward.value_checks import parse_integers, whole_number

COLUMNS = (
    Column("method"),
    Column("resampling"),
    Column("ess_threshold", "ESS rule", "{:g}"),
    Column("schedule"),
    Column("num_particles", "K", "{:d}"),
    Column("sample_steps", "sample steps", "{:d}"),
    Column("variance", "relative variance ± se", "{:.3f} ± {:.3f}", ("variance_error",)),
    Column("bias", "evidence / exact - 1", "{:+.3f} ± {:.3f}", ("bias_error",)),
)

MEANS = torch.tensor([[1.4, -0.05], [-1.9, 0.85]], dtype=torch.float64)
SHARES = torch.tensor([0.7, 0.3], dtype=torch.float64)
VARIANCE = 0.2


class ExactReverse(DDPMScheduler):
    """Draws x_{t-1} from the p(x_{t-1} | x_t) of the mixture, so that x_0 has its law with any number of steps."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Generator | None = None
    ) -> DDPMSchedulerOutput:
        """Choose a mode by its posterior probability, then draw from the Gaussian bridge to it."""
        now = float(self.alphas_cumprod[int(timestep)])
        before = int(self.previous_timestep(timestep))
        to = float(self.alphas_cumprod[before]) if before >= 0 else 1.0
        posterior = responsibilities(sample, now)
        means = MEANS[torch.multinomial(posterior, 1, generator=generator)[:, 0]]
        kept, prior = now / to, to * VARIANCE + 1 - to
        precision = 1 / prior + kept / (1 - kept)
        centre = (math.sqrt(to) * means / prior + math.sqrt(kept) * sample / (1 - kept)) / precision
        noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
        x0_pred = (sample - math.sqrt(1 - now) * model_output) / math.sqrt(now)
        return DDPMSchedulerOutput(prev_sample=centre + precision**-0.5 * noise, pred_original_sample=x0_pred)


def responsibilities(sample: Tensor, alpha_bar: float) -> Tensor:
    """`(B, 2)`, the posterior probabilities of the modes given noisy samples `(B, 2)`."""
    spread = alpha_bar * VARIANCE + 1 - alpha_bar
    distances = (sample[:, None] - math.sqrt(alpha_bar) * MEANS).square().sum(-1)
    return torch.softmax(SHARES.log() - distances / (2 * spread), dim=-1)


def reward(x0: Tensor) -> Tensor:
    """Reward of samples `(B, 2)`, as `(B,)`: highest in the smaller mode, with a jump between the two."""
    return torch.cos(2 * x0[:, 1]) - (x0[:, 0] + 1).abs() + 0.8 * (x0[:, 0] < 0)


@dataclass(frozen=True, kw_only=True)
class MixtureProblem:
    """A mixture of two Gaussians in the plane, its exact chain, and a reward that prefers the smaller mode.

    Attributes:
        num_steps: scheduler steps.
        reward_scale: lambda.

    Example:
        >>> round(MixtureProblem().evidence(), 3)
        0.469
    """

    num_steps: int = 12
    reward_scale: float = 1.2

    def scheduler(self) -> ExactReverse:
        """A fresh scheduler, its timesteps set."""
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        scheduler = ExactReverse(**betas, clip_sample=False)
        scheduler.set_timesteps(self.num_steps)
        return scheduler

    def start(self, number: int, generator: Generator) -> Tensor:
        """`(number, 2)` float64, samples of the mixture at the noise level of the first step."""
        scheduler = self.scheduler()
        alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
        means = MEANS[torch.multinomial(SHARES, number, replacement=True, generator=generator)]
        noise = torch.randn(number, 2, generator=generator, dtype=torch.float64)
        return math.sqrt(alpha_bar) * means + math.sqrt(alpha_bar * VARIANCE + 1 - alpha_bar) * noise

    def noise_prediction(self, sample: Tensor, alpha_bar: float) -> Tensor:
        """`E[noise | x_t]` of samples `(B, 2)`."""
        alpha, spread = math.sqrt(alpha_bar), alpha_bar * VARIANCE + 1 - alpha_bar
        of_modes = MEANS + alpha * VARIANCE / spread * (sample[:, None] - alpha * MEANS)
        x0_pred = (responsibilities(sample, alpha_bar)[..., None] * of_modes).sum(1)
        return (sample - alpha * x0_pred) / math.sqrt(1 - alpha_bar)

    def tilted_masses(self) -> tuple[Tensor, Tensor]:
        """Points `(P, 2)` of a fine grid, and p(x) exp(lambda r(x)) times its cell at each: quadrature."""
        line = torch.linspace(-6, 6, 1201, dtype=torch.float64)
        points = torch.cartesian_prod(line, line)
        distances = (points[:, None] - MEANS).square().sum(-1)
        density = (SHARES * torch.exp(-distances / (2 * VARIANCE))).sum(-1) / (2 * math.pi * VARIANCE)
        return points, density * torch.exp(self.reward_scale * reward(points)) * float(line[1] - line[0]) ** 2

    def evidence(self) -> float:
        """`E_p[exp(lambda r)]`."""
        return float(self.tilted_masses()[1].sum())


def steered(
    problem: MixtureProblem,
    config: Any,
    *,
    num_runs: int,
    seed: int = 0,
    lookahead: int = 1,
    population_type: type[FKPopulation] = FKPopulation,
) -> tuple[FKPopulation, Tensor]:
    """Run the complete sampler: R independent populations, as the groups of one.

    Args:
        problem: what is sampled.
        config: an `FKSteeringConfig`, or one that moves its particles, such as `GradientFKConfig`.
        num_runs: R.
        seed: of noise and resampling.
        lookahead: coarse steps after which a prediction is read; 1 for that of the step.
        population_type: what weighs and resamples.

    Returns:
        The finished population and its samples `(R * K, 2)`.
    """
    scheduler, noise = problem.scheduler(), Generator().manual_seed(seed)
    population = population_type(config, num_runs, Generator().manual_seed(seed + 1))
    sample = problem.start(num_runs * config.num_particles, noise)

    def denoise(sample: Tensor, timestep: Any) -> Tensor:
        return problem.noise_prediction(sample, float(scheduler.alphas_cumprod[int(timestep)]))

    asked: dict[str, Any] = {"prediction": LookAhead(lookahead), "denoise": denoise} if lookahead > 1 else {}
    if isinstance(config, MovingSearch):
        asked["transition"] = config.transition(population)
    with steer(scheduler, population, reward, **asked) as records:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(denoise(sample, timestep), timestep, sample, generator=noise).prev_sample
    population.finish(reward(sample), log_ratio=records.log_ratio)
    return population, sample


def estimate_evidence(
    problem: MixtureProblem, config: Any, *, num_runs: int, seed: int = 0, lookahead: int = 1
) -> Tensor:
    """`(R,)` float64, the evidence that each of `num_runs` populations estimates: unbiased at any number of particles.

    Example:
        >>> estimate_evidence(MixtureProblem(), FKSteeringConfig(reward_scale=1.2), num_runs=3).shape
        torch.Size([3])
    """
    return steered(problem, config, num_runs=num_runs, seed=seed, lookahead=lookahead)[0].log_evidence.exp()


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        told: what its row says.
        config: of the search; its sizes follow the number of particles.
        lookahead: coarse steps after which predictions are read.
    """

    told: dict[str, Any]
    config: FKSteeringConfig
    lookahead: int = 1


class Compared(Protocol):
    """What `run_benchmark` goes through."""

    def settings(self, problem: MixtureProblem) -> Iterator[Setting]:
        """All that are compared, each with the lambda of the problem."""


@dataclass(frozen=True)
class Searches:
    """The searches that estimate the evidence without bias at any number of particles, by their default settings.

    Others have no row: `restart` and the chains of `noise-search` have a law, and no estimate of its evidence; each run
    of `particle-metropolis` is one of `fk`; `svdd`, `beam`, `rollover`, `pruning`, `draft-refine` have no such law.

    Attributes:
        configs: name -> config.
        lookahead: name -> coarse steps.
    """

    configs: dict[str, FKSteeringConfig] = field(
        default_factory=lambda: {
            "best of K": FKSteeringConfig(num_resamples=0),
            "fk": FKSteeringConfig(),
            "fk, weights constant": FKSteeringConfig(reward_weight="constant"),
            "fk, K/2 finished": FKSteeringConfig(final_particles=2),
            "fk, lookahead=3": FKSteeringConfig(),
            "fk-gradient": GradientFKConfig(),
            "fk-paper": PAPER,
        }
    )
    lookahead: dict[str, int] = field(default_factory=lambda: {"fk, lookahead=3": 3})

    def settings(self, problem: MixtureProblem) -> Iterator[Setting]:
        """One for each name."""
        for name, config in self.configs.items():
            yield Setting(
                {"method": name}, replace(config, reward_scale=problem.reward_scale), self.lookahead.get(name, 1)
            )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings that are compared, each with each; every one targets the same law.

    Attributes:
        potentials: names of `POTENTIALS`.
        weights: values of `reward_weight`.
        resamplers: names of `RESAMPLERS`.
        thresholds: values of `ess_threshold`.
        schedules: first and last scoring step as fractions, and how many, as `"0.2-0.8x4"`.
    """

    potentials: Sequence[str] = tuple(POTENTIALS)
    weights: Sequence[str] = ("constant", "rising")
    resamplers: Sequence[str] = ("systematic",)
    thresholds: Sequence[float] = (0.5, 1.0)
    schedules: Sequence[str] = ("0.2-0.8x4", "0.4-0.9x4")

    def settings(self, problem: MixtureProblem) -> Iterator[Setting]:
        """Best of K, then each combination."""
        plain = FKSteeringConfig(reward_scale=problem.reward_scale, num_resamples=0)
        yield Setting({"method": "best of K"}, plain)
        for potential, weight, *others in product(
            self.potentials, self.weights, self.resamplers, self.thresholds, self.schedules
        ):
            resampling, threshold, schedule = others
            config = replace(
                plain,
                potential=potential,
                reward_weight=weight,
                resampling=resampling,
                ess_threshold=threshold,
                **scoring(schedule),
            )
            told = {"resampling": resampling, "ess_threshold": threshold, "schedule": schedule}
            yield Setting({"method": f"{potential}, {weight}", **told}, config)


def scoring(schedule: str) -> dict[str, Any]:
    """Fields of `FKSteeringConfig` for `"0.2-0.8x4"`: four scoring steps from 20 % to 80 % of the trajectory.

    Raises:
        ValueError: for text of another form.

    Example:
        >>> scoring("0.2-0.8x4")
        {'resample_start': 0.2, 'resample_stop': 0.8, 'num_resamples': 4}
    """
    try:
        span, number = schedule.split("x")
        start, stop = (float(end) for end in span.split("-"))
        return {"resample_start": start, "resample_stop": stop, "num_resamples": int(number)}
    except ValueError as error:
        raise ValueError(f'A schedule should be like "0.2-0.8x4", got {schedule!r}.') from error


def relative_variance(estimates: Tensor, exact: float) -> dict[str, float]:
    """Variance of estimates `(R,)` over the square of the exact value, their bias, and the standard errors of both.

    Example:
        >>> relative_variance(torch.tensor([1.0, 3.0]), 2.0)["variance"]
        0.25
    """
    off = estimates / exact - 1
    variance, variance_error = mean_and_error(off.square().tolist())
    bias, bias_error = mean_and_error(off.tolist())
    return {"variance": variance, "variance_error": variance_error, "bias": bias, "bias_error": bias_error}


def run_benchmark(
    problem: MixtureProblem, compared: Compared, *, num_particles: Sequence[int], num_runs: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """One row for each setting and number of particles.

    Example:
        >>> grid = Grid(potentials=["max"], weights=["rising"], thresholds=[1.0], schedules=["0.5-0.5x1"])
        >>> [row["method"] for row in run_benchmark(MixtureProblem(), grid, num_particles=[4], num_runs=8)]
        ['best of K', 'max, rising']
    """
    exact = problem.evidence()
    for setting in compared.settings(problem):
        for size in num_particles:
            config, lookahead = resized(setting.config, size), setting.lookahead
            estimates = estimate_evidence(problem, config, num_runs=num_runs, seed=seed, lookahead=lookahead)
            cost = sample_steps(config, problem.num_steps, lookahead=lookahead)
            yield {
                **setting.told,
                "num_particles": size,
                "sample_steps": cost,
                **relative_variance(estimates, exact),
            }


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    compare: Literal["settings", "searches"] = "settings",
    num_particles: str = "4,16",
    num_runs: int = 2000,
    potentials: str = ",".join(Grid.potentials),
    weights: str = ",".join(Grid.weights),
    resamplers: str = ",".join(Grid.resamplers),
    thresholds: str = ",".join(map(str, Grid.thresholds)),
    schedules: str = ",".join(Grid.schedules),
    seed: int = 0,
    out: OutOption = Path("results/mixture"),
) -> None:
    """Compare settings of FK steering, or searches, by the variance of their evidence on a toy with a known answer.

    Args:
        compare: Settings of FK steering, each with each, or the searches that have an evidence, by their defaults.
        num_particles: Numbers of particles, separated by commas.
        num_runs: Independent runs of each setting, at least 2.
        potentials: Potentials, separated by commas.
        weights: Reward weights: constant, rising.
        resamplers: Resampling schemes.
        thresholds: ESS thresholds, as fractions of K.
        schedules: First and last scoring step as fractions, and how many.
        seed: Seed of all runs.
        out: Folder of the results.
    """
    whole_number("--num-runs", num_runs, minimum=2)
    sizes = parse_integers("num_particles", num_particles)
    grid = Grid(
        potentials=potentials.split(","),
        weights=weights.split(","),
        resamplers=resamplers.split(","),
        thresholds=_numbers("thresholds", thresholds),
        schedules=schedules.split(","),
    )
    list(grid.settings(MixtureProblem()))  # refuses what is misspelt before anything is run
    compared: Compared = Searches() if compare == "searches" else grid
    with hold_folder(out):
        report = _report(compared, {"num_particles": sizes, "num_runs": num_runs, "seed": seed})
        say(f"Results: {write_json(out / 'mixture.json', report)}")


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{name} should be numbers (ess_threshold), separated by commas, got {text!r}.") from error


def _report(compared: Compared, options: dict[str, Any]) -> dict[str, Any]:
    """Run all settings, print their table, the best one first, and return the content of the file."""
    problem = MixtureProblem()
    rows = sorted(run_benchmark(problem, compared, **options), key=lambda row: (row["num_particles"], row["variance"]))
    columns = [column for column in COLUMNS if any(column.key in row for row in rows)]
    show_table(f"{options['num_runs']} runs each; exact evidence {problem.evidence():.4f}", columns, rows)
    return {"problem": asdict(problem), **options, "exact": problem.evidence(), "rows": rows}


if __name__ == "__main__":
    run_script(main)
