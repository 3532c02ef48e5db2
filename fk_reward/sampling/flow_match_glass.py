"""GLASS transitions for flow-matching models: as stochastic as an SDE, and drawn by an ODE."""

from __future__ import annotations

import inspect
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

# SchedulerMixin is not used: Diffusers looks here for the base class that says how a saved scheduler is loaded
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin  # noqa: F401
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from fk_reward.value_checks import whole_number

Correlation: TypeAlias = float | Literal["ddpm"]
"""Of the noise before a transition with the noise after it."""

_FIRST_STEPS_SHORTER = 1.3
"""Power of the model's own spacing inside a transition. With 1, modes of the mixture of docs/schedulers.md are 3 to 4 %
too narrow at 50 steps and 5 inner ones, with this at most 2 % too wide."""


class FlowMatchGLASSScheduler(FlowMatchEulerDiscreteScheduler):
    """GLASS flows (Holderrieth et al. 2025, arXiv 2509.25170): transitions x_t -> x_t', each drawn by an inner flow.

    A run of N steps calls the denoiser N times, as the ODE does, on N levels that are those of
    `FlowMatchEulerDiscreteScheduler` at the beginning of each transition: there are N / `num_inner_steps` of them, each
    of `num_inner_steps` calls. (Where that is no whole number, the last ones have a call more or less.)

    With x_t = (1 - s) x0 + s noise, the noises of two levels s > s' are given the correlation rho. Then

        x_t' = g x_t + a x0 + b fresh noise,    g = rho s' / s,  a = 1 - s' - g (1 - s),  b = s' sqrt(1 - rho²),

    which keeps the marginals for any rho and needs x0 from p(x0 | x_t). The inner flow draws x0 and noise together: w
    goes from pure noise (tau = 1) to tau = b / (a + b) along w = (1 - tau) x0 + tau noise; x_t' = g x_t + (a + b) w.
    x_t and w are two looks at the same x0 with independent errors, so that what both of them say is one sample at one
    level of the model: of their precision-weighted mean, the sufficient statistic. That is what the denoiser is asked
    about, and its prediction is E[x0 | x_t, w]. The inner flow is solved to second order, with the prediction of the
    inner step before (as in `FlowMatchSDEScheduler`), and its first step, which has none before it, is a shorter one.

    `step` returns the input of the next call, since flow pipelines never call `scale_model_input`; x_t and w are kept
    as tensors of its shape, which `steer` gathers like any history. Searches score at the beginnings of transitions,
    and count these as their steps.

    Args:
        correlation: rho, in [0, 1). 0 forgets all noise, and 1 would be no noise at all. `"ddpm"` is the correlation of
            the reverse process, with which x_t' alone says what x_t and w say; with one inner step a transition is then
            a step of SDE-DPM-Solver++ of first order.
        num_inner_steps: calls of the denoiser in a transition.
        **settings: those of `FlowMatchEulerDiscreteScheduler`, which say the levels.

    Raises:
        TypeError: for a number of inner steps that is none, or an unknown setting.
        ValueError: for a correlation outside [0, 1), no inner step, or Mochi's inverted levels.

    Example:
        >>> own = FlowMatchEulerDiscreteScheduler(shift=3.0)
        >>> scheduler = FlowMatchGLASSScheduler.from_config(own.config, correlation=0.4, num_inner_steps=5)
        >>> scheduler.set_timesteps(20), own.set_timesteps(20)
        (None, None)
        >>> len(scheduler.timesteps), scheduler.transition_starts
        (20, (0, 5, 10, 15))
        >>> torch.equal(scheduler.timesteps[::5], own.timesteps[::5])
        True
    """

    transition_starts: tuple[int, ...] = ()
    """The steps at which transitions begin; `steer` scores there."""

    _outer: Tensor | None = None
    _inner: Tensor | None = None
    _before: Tensor | None = None
    """x_t, w, and the prediction before, of the transition that is being made: `(B, C, ...)` float32."""

    timesteps: Tensor
    sigmas: Tensor

    def __init__(self, *, correlation: Correlation = 0.4, num_inner_steps: int = 4, **settings: Any) -> None:
        if correlation != "ddpm" and not (isinstance(correlation, float | int) and 0 <= correlation < 1):
            raise ValueError(f"correlation should be in [0, 1) or 'ddpm', got {correlation!r}.")
        whole_number("num_inner_steps", num_inner_steps, minimum=1)
        if settings.get("invert_sigmas"):
            raise ValueError(
                "FlowMatchGLASSScheduler has no inverted levels (Mochi): use best of N, which runs on any scheduler."
            )
        super().__init__(**settings)
        self.register_to_config(correlation=correlation, num_inner_steps=num_inner_steps)

    # from_config reads the names of settings off the signature, and new ones of Diffusers should be among them
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters.values(),
            inspect.Parameter("correlation", inspect.Parameter.KEYWORD_ONLY, default=0.4),
            inspect.Parameter("num_inner_steps", inspect.Parameter.KEYWORD_ONLY, default=4),
        ]
    )

    def set_timesteps(  # pipelines look into this signature before they pass sigmas, mu or timesteps
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As `FlowMatchEulerDiscreteScheduler.set_timesteps`, with the levels inside transitions moved.

        Args:
            num_inference_steps: N, calls of the denoiser.
            device: of timesteps and sigmas.
            sigmas: the model's N levels.
            mu: of the dynamic shift.
            timesteps: the model's N timesteps.
        """
        super().set_timesteps(num_inference_steps, device, sigmas=sigmas, mu=mu, timesteps=timesteps)
        own = self.sigmas.double().cpu().numpy()
        num_steps, most = len(own) - 1, self.config.num_inner_steps
        number = -(-num_steps // most)
        bounds = [part * num_steps // number for part in range(number + 1)]
        self.transition_starts = tuple(bounds[:-1])
        self._transitions = [_Transition(own[a : b + 1], self._correlation(own[a], own[b])) for a, b in _pairs(bounds)]
        levels = np.concatenate([one.levels[:-1] for one in self._transitions])
        # a model that was given timesteps of its own is asked by them: between two levels, between their timesteps
        known = [*self.timesteps.double().cpu().tolist(), 0.0]
        asked = np.interp(levels, own[::-1], known[::-1])
        self.timesteps = torch.from_numpy(asked).to(self.timesteps)
        self.sigmas = torch.from_numpy(np.append(levels, 0.0)).to(self.sigmas)
        self._outer = self._inner = self._before = None

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The first step of this timestep: levels do not descend from one transition to the next, and may coincide.

        Args:
            timestep: of `timesteps`.
            schedule_timesteps: in place of `timesteps`.
        """
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return int((schedule == timestep).nonzero()[0].item())

    @property
    def draws_now(self) -> bool:
        """Whether the next call of `step` begins a transition, which is where noise is drawn."""
        place = self.step_index if self.step_index is not None else self.begin_index or 0
        return place in self.transition_starts

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Make an inner step; at the end of a transition, go on to its result.

        Args:
            model_output: `(B, C, ...)`, the velocity, noise - x0.
            timestep: of `timesteps`.
            sample: `(B, C, ...)`: at the beginning of a transition x_t, inside it what the step before returned.
            generator: where the noise comes from.
            return_dict: False for a tuple.

        Raises:
            ValueError: where a run begins in the middle of a transition.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        number = int(np.searchsorted(self.transition_starts, self.step_index, side="right")) - 1
        transition, place = self._transitions[number], self.step_index - self.transition_starts[number]
        sample = sample.to(torch.float32)
        if place == 0:
            self._outer, self._before = sample, None
            self._inner = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        if self._outer is None or self._inner is None:
            raise ValueError(
                f"FlowMatchGLASSScheduler cannot begin at step {self.step_index}, inside a transition: those begin at "
                f"steps {self.transition_starts}. Choose a strength, or a number of steps, that begins at one of them."
            )
        x0_pred = sample - float(transition.levels[place]) * model_output
        middle = transition.in_the_middle(place, x0_pred, self._before)
        tau, following = transition.taus[place : place + 2]
        self._inner = self._inner + (following / tau - 1) * (self._inner - middle)
        self._before = x0_pred
        moved = transition.after(place, self._outer, self._inner)
        self._step_index += 1
        moved = moved.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def _correlation(self, level: float, following: float) -> float:
        """Of the noises of two levels; at the clean end nothing is left to correlate."""
        if following == 0:
            return 0.0
        if self.config.correlation == "ddpm":
            return (1 - level) * following / (level * (1 - following))
        return float(self.config.correlation)


class _Transition:
    """The coefficients of one transition.

    Args:
        own: the model's levels from its beginning to its end, `(M + 1,)` for M inner steps.
        correlation: rho.

    Attributes:
        levels: `(M + 1,)`, at which the denoiser is asked, and that of x_t and w together at the end.
        taus: `(M + 1,)`, of the inner state.
    """

    def __init__(self, own: np.ndarray[Any, Any], correlation: float) -> None:
        level, following = float(own[0]), float(own[-1])
        self._level, self._gain = level, correlation * following / level
        clean, noise = 1 - following - self._gain * (1 - level), following * (1 - correlation**2) ** 0.5
        self._scale = clean + noise
        # both looks together know as much as one sample at the level `end`
        end = 1 / (1 + (_precision(level) + _precision(noise / self._scale)) ** 0.5)
        self.levels = level - ((level - own) / (level - following)) ** _FIRST_STEPS_SHORTER * (level - end)
        precisions = [max(_precision(one) - _precision(level), 0.0) for one in self.levels[:-1]]
        self.taus = [1 / (1 + precision**0.5) for precision in precisions] + [noise / self._scale]

    def in_the_middle(self, place: int, x0_pred: Tensor, before: Tensor | None) -> Tensor:
        """The prediction in the middle of an inner step, by that of the one before; to a clean w a plain one."""
        if before is None or self.taus[place + 1] == 0:
            return x0_pred
        last, level, following = self.levels[place - 1 : place + 2]
        return x0_pred + (x0_pred - before) * float((level - following) / (2 * (last - level)))

    def after(self, place: int, outer: Tensor, inner: Tensor) -> Tensor:
        """What the denoiser needs after the inner step of this place: the mean of both looks, or the next x_t."""
        if place + 2 == len(self.levels):
            return self._gain * outer + self._scale * inner
        sigma, tau = self.levels[place + 1], self.taus[place + 1]
        share = sigma**2 / (1 - sigma)  # of the mean, at the level that its precision is that of
        return share * ((1 - self._level) / self._level**2) * outer + share * ((1 - tau) / tau**2) * inner


def _precision(level: float) -> float:
    """Of x0 as read off a sample at a level: (alpha / sigma)²."""
    return ((1 - level) / level) ** 2 if level else float("inf")


def _pairs(bounds: list[int]) -> list[tuple[int, int]]:
    return list(zip(bounds[:-1], bounds[1:], strict=True))
