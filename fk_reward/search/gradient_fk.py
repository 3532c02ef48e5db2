"""Gradient-guided proposals: particles move towards the reward, and weights make up for it exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fk_reward.search.base import Forecast, step_at
from fk_reward.search.feynman_kac import FKPopulation, FKSteeringConfig
from fk_reward.search.moves import BeforeStep, Move, Moved, Score
from fk_reward.smc.reward_scale import AUTO
from fk_reward.value_checks import ordered_fractions, real_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class GradientFKConfig(FKSteeringConfig):
    """Feynman-Kac steering whose particles are proposed along the gradient of the reward.

    In each guided step the mean of the scheduler's Gaussian move, of standard deviation s, is shifted by
    `s**2 * gradient_strength * lambda * alpha / (alpha**2 + sigma**2) * d r / d x0_pred`, through the decoder. The
    log-ratio of the model's density over that of the proposal goes into the weights, so that the target is
    `p(x) exp(lambda r(x))` whatever the gradient is: a bad one costs particles, not correctness. What is returned by
    `selection="best"` is biased upwards as in `FKSteeringConfig`, and with a single particle there is nothing to weigh,
    so that the images follow the proposal and not the target.

    The twisted proposals of TDS (Wu et al. 2023, arXiv 2306.17775) and of DAS (Kim et al. 2025, arXiv 2501.05803). Both
    differentiate through the denoiser; here `alpha / (alpha**2 + sigma**2)` stands for it, what it is for data of
    variance 1, so that no second call of the denoiser is needed. `potential="difference"` with a scoring step at every
    step is TDS' weighting.

    The reward must be differentiable (its card says so) and the transition stochastic. A guided step costs a decode, a
    reward call and their backward pass for each particle, beside those of the scoring steps (`Forecast.guided`); all
    particles are in one graph, which takes memory that no batch size lowers (`fk_reward.planning.plan` counts it).

    The other settings are those of `FKSteeringConfig`; `reward_scale` scales the shift, too (with `"auto"` nothing is
    shifted before the first scoring step has chosen it).

    Attributes:
        gradient_start: first guided step, as a fraction of the trajectory in [0, 1].
        gradient_stop: end of the guided steps, as a fraction of the trajectory in [gradient_start, 1].
        gradient_strength: factor of the shift, at least 0. 0 is `FKSteeringConfig`.
        max_shift: largest length of a step's shift, in units of s, above 0. It is the standard deviation of the
            log-ratio of one step, so that a few steps of 1 spread the weights of a prompt as much as a reward does.

    Example:
        >>> GradientFKConfig(num_particles=8, reward_scale=2.0).max_shift
        0.5
    """

    needs_gradients: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = True

    gradient_start: float = 0.2
    gradient_stop: float = 0.8
    gradient_strength: float = 1.0
    max_shift: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers: dict[str, Any] = {
            "gradient_strength": real_number("gradient_strength", self.gradient_strength, low=0.0),
            "max_shift": real_number("max_shift", self.max_shift, low=1e-6),
        }
        numbers |= ordered_fractions(gradient_start=self.gradient_start, gradient_stop=self.gradient_stop)
        vars(self).update(numbers)

    def guided_steps(self, num_steps: int) -> range:
        """Indices of the scheduler steps whose moves are shifted; never the last one, which adds no noise.

        Example:
            >>> GradientFKConfig().guided_steps(10)
            range(2, 8)
        """
        start, stop = (step_at(f, num_steps) for f in (self.gradient_start, self.gradient_stop))
        return range(start, min(stop, num_steps - 1))

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> GradientFKPopulation:
        """The particles of one call; the arguments are those of `FKSteeringConfig.population`."""
        return GradientFKPopulation(self, num_groups, generators, spread=spread)

    def transition(self, population: FKPopulation) -> GradientTransition:
        """The moves of one call."""
        return GradientTransition(self, population)


class GradientFKPopulation(FKPopulation):
    """An `FKPopulation` whose forecast knows the guided steps.

    Example:
        >>> forecast = GradientFKConfig(num_particles=2).population().forecast(10)
        >>> forecast.scorings, forecast.guided, forecast.num_scored
        ((2, 2, 2, 2), (2, 2, 2, 2, 2, 2), 22)
    """

    config: GradientFKConfig  # type: ignore[assignment]

    def forecast(self, num_steps: int) -> Forecast:
        """Sizes and guided steps of a complete run, at most: where no particle's rewards differ, nothing is shifted."""
        plain = super().forecast(num_steps)
        # a move comes after the scoring of its step, and so has the particles of the next one
        guided = tuple(plain.steps[step + 1] for step in self._guided_steps(num_steps))
        return replace(plain, guided=guided)

    def _guided_steps(self, num_steps: int) -> Sequence[int]:
        config = self.config
        if 0.0 in (config.gradient_strength, config.reward_scale):
            return ()
        steps = config.guided_steps(num_steps)
        if config.reward_scale != AUTO:
            return steps
        chosen = min(self.scoring_steps(num_steps), default=num_steps)  # lambda is 0 until rewards have chosen it
        return range(max(steps.start, chosen), steps.stop)


class GradientTransition:
    """Moves whose means are shifted along the gradient of the reward of the predicted clean sample.

    Args:
        config: where, and by how much.
        population: of the call, whose lambda scales the shift.
    """

    needs_noise = True

    def __init__(self, config: GradientFKConfig, population: FKPopulation) -> None:
        self._config = config
        self._population = population

    def __call__(self, state: BeforeStep, move: Move, score: Score) -> Moved:
        """Make one step.

        Raises:
            ValueError: where no gradient reaches the prediction, or one that is not finite.
        """
        weights = self._config.gradient_strength * self._population.reward_scale
        if state.num_steps is None:
            raise ValueError("How many steps will run cannot be known: pass num_steps to steer().")
        if state.index not in self._config.guided_steps(state.num_steps) or not bool((weights > 0).any()):
            return Moved(move())
        gradient = reward_gradient(state, score)
        alpha, sigma = state.alpha_sigma
        of_rows = weights.to(gradient.device, torch.float32).repeat_interleave(len(gradient) // len(weights))
        drawn = move.drawn()
        # the shift in units of the noise of this step
        shift = drawn.scale * _per_row(alpha / (alpha**2 + sigma**2) * of_rows, gradient) * gradient
        length = shift.flatten(1).norm(dim=1)
        shift = shift * _per_row((self._config.max_shift / length.clamp_min(1e-30)).clamp_max(1.0), shift)
        log_ratio = -(shift * drawn.noise + shift**2 / 2).flatten(1).sum(1)
        return Moved(drawn.sample + (drawn.scale * shift).to(drawn.sample.dtype), log_ratio)


def reward_gradient(state: BeforeStep, score: Score) -> Tensor:
    """Gradient of each row's reward with respect to its predicted clean sample.

    Args:
        state: before the step.
        score: predicted clean samples to rewards.

    Returns:
        `(B, C, ...)` float32; 0 in rows with a reward of -inf, which has no direction.

    Raises:
        ValueError: where the rewards carry no gradient, or one that is NaN or infinite.
    """
    # a pipeline's call records no gradients, and may stand in inference mode, whose tensors never carry any
    with torch.inference_mode(False), torch.enable_grad():
        x0_pred = state.x0_pred().detach().clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(_held, _given):
            rewards = score(x0_pred)
        if not rewards.requires_grad:
            raise ValueError(
                "No gradient reaches the predicted clean sample: the reward or the decoder works outside of autograd "
                "(detach(), numpy, 8-bit images). Use another reward or preview, or search='fk'."
            )
        (gradient,) = torch.autograd.grad(rewards.sum(), x0_pred, materialize_grads=True, allow_unused=True)
    gradient = gradient.to(torch.float32).masked_fill(_per_row(rewards == -torch.inf, gradient), 0.0)
    bad = (~gradient.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"The gradient of the reward at step {state.index} is NaN or infinite for row {bad[0]}, whose reward is "
            f"{float(rewards[bad[0]].detach()):.4g}: run decoder and reward in float32, or use search='fk'."
        )
    return gradient


def _held(saved: Tensor) -> Tensor:
    """What the backward pass is given of a saved tensor: its numbers as they are now.

    SDXL's pipeline makes its float16 autoencoder float32 to decode, and float16 again at once; a graph that held the
    parameters themselves would find other numbers in them than those that it was made with.
    """
    return saved.detach() if saved.is_leaf else saved


def _given(saved: Tensor) -> Tensor:
    return saved


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """`(B,)` as `(B, 1, ...)`, to multiply the rows of a tensor with."""
    return values.detach().view(-1, *(1,) * (like.ndim - 1))
