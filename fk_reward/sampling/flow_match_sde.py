"""A stochastic scheduler for flow-matching models that keeps their marginals."""

from __future__ import annotations

import torch

# SchedulerMixin is not used: Diffusers looks here for the base class that says how a saved scheduler is loaded
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin  # noqa: F401
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor


class FlowMatchSDEScheduler(FlowMatchEulerDiscreteScheduler):
    """SDE-DPM-Solver++ of second order (Lu et al., 2022) on the noise levels of a flow-matching model.

    Levels, timesteps, shifts and settings are those of `FlowMatchEulerDiscreteScheduler`, so that a pipeline calls it
    as it calls the model's own: with `sigmas`, `mu`, `timesteps` or a number of steps. (Diffusers'
    `DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_flow_sigmas=True)` takes no `sigmas`, which most
    flow pipelines pass, rounds the model's timesteps down, and writes the shift of a call into its own config.)

    With alpha = 1 - sigma and h the step in log(alpha / sigma), a step from sigma_s to sigma_t is

        x_t = (sigma_t / sigma_s) exp(-h) x_s + alpha_t (1 - exp(-2h)) D + sigma_t sqrt(1 - exp(-2h)) noise,

    and D = x0 + (x0 - x0_before) (sigma_s - sigma_t) / (2 (sigma_before - sigma_s)). Diffusers takes this last ratio
    between steps in log(alpha / sigma). The two agree to second order, but those steps grow towards the end of the
    levels of flow models, and the extrapolation then spreads the samples (`docs/schedulers.md` has the figures).

    Example:
        >>> own = FlowMatchEulerDiscreteScheduler(shift=3.0)
        >>> scheduler = FlowMatchSDEScheduler.from_config(own.config)
        >>> scheduler.set_timesteps(4), own.set_timesteps(4)
        (None, None)
        >>> torch.equal(scheduler.sigmas, own.sigmas)
        True
    """

    _before: tuple[Tensor, float] | None = None
    """Prediction and noise level of the step before. `steer` gathers the prediction as it does any history."""

    def set_timesteps(  # pipelines look into this signature before they pass sigmas, mu or timesteps
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As `FlowMatchEulerDiscreteScheduler.set_timesteps`; forgets the step before."""
        super().set_timesteps(num_inference_steps, device, sigmas=sigmas, mu=mu, timesteps=timesteps)
        self._before = None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Draw the sample of the next noise level.

        Args:
            model_output: `(B, C, ...)`, the velocity, noise - x0.
            timestep: of `timesteps`.
            sample: `(B, C, ...)`.
            generator: where the noise comes from.
            return_dict: False for a tuple.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, following = (float(level) for level in self.sigmas[self.step_index : self.step_index + 2])
        sample = sample.to(torch.float32)
        x0_pred = sample - sigma * model_output
        # exp(-h): 0 where the sample is all noise (sigma = 1) and where it becomes clean, both of which are exact
        shrinkage = (1 - sigma) * following / ((1 - following) * sigma)
        drawn = 1 - shrinkage**2
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        moved = (following / sigma * shrinkage) * sample
        moved = moved + ((1 - following) * drawn) * self._extrapolated(x0_pred, sigma, following)
        moved = moved + (following * drawn**0.5) * noise
        self._before = (x0_pred, sigma)
        self._step_index += 1
        moved = moved.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def _extrapolated(self, x0_pred: Tensor, sigma: float, following: float) -> Tensor:
        """The prediction in the middle of the step. To the clean sample the step is a plain prediction, as in DDIM."""
        if self._before is None or following == 0:
            return x0_pred
        before, sigma_before = self._before
        return x0_pred + (x0_pred - before) * ((sigma - following) / (2 * (sigma_before - sigma)))
