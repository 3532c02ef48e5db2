"""A diffusion whose every distribution is Gaussian: exact scores, and a tilted target in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor


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
    really simulated, so that what is left between an estimate and `tilted` is the error of the particle filter alone.

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
        """Mean and variance of what the chain ends in, without steering.

        Each step is affine in the sample and in the noise. Its three coefficients are read off the scheduler itself,
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
