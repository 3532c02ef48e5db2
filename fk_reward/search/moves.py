"""How the particles of a search move: proposals of its own, and the ratio that makes up for them.

Most searches leave the moves to the scheduler. One that proposes its own (`MovingSearch`) makes a `Transition` for each
call, which gets the scheduler's step as a function (`Move`) and answers with the next samples and the log-ratio of the
model's density over that of the proposal (`Moved`), which goes into the weights.

Letters of shapes: B rows of the batch (G prompts of K particles each, prompt-major).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias, runtime_checkable

from fk_reward.search.base import Population, SearchConfig

if TYPE_CHECKING:
    from torch import Tensor

Score: TypeAlias = "Callable[[Tensor], Tensor]"
"""Predicted clean samples `(B, C, ...)` to rewards `(B,)`, with the gradient where autograd records."""


@runtime_checkable
class NoiseAware(Protocol):
    """What a `Score` has besides, if it judges predictions by how much noise was in the sample."""

    def at_noise(self, level: float) -> Score:
        """The score of predictions that are made from samples of this noise level; asked at each scoring step.

        Args:
            level: sigma / sqrt(alpha² + sigma²), in [0, 1].
        """


def score_at(score: Score, level: float | None) -> Score:
    """The score at a noise level: the same where it asks for none, or the level is not known.

    Example:
        >>> score_at(sum, 0.5) is sum
        True
    """
    return score.at_noise(level) if isinstance(score, NoiseAware) and level is not None else score


@dataclass(frozen=True)
class Moved:
    """Where a transition has taken the particles.

    Attributes:
        sample: `(B, C, ...)`, the next samples.
        log_ratio: `(B,)`, log p/q of these moves: the model's transition density over that of the proposal. It goes
            into the weights. None where the moves are the model's own.
    """

    sample: Tensor
    log_ratio: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """A step of the scheduler, taken apart: `sample = mean + scale * noise`.

    Given everything else, the model's transition is a Gaussian with this scale in each number. So `sample + shift` is a
    draw of the proposal whose mean is shifted, and its log p/q is `-(shift / scale * noise + (shift / scale)**2 / 2)`,
    summed over the numbers of a row.

    Attributes:
        sample: `(B, C, ...)`, the next samples, as the scheduler returned them.
        noise: `(B, C, ...)` float32, the standard normal numbers that it drew; 0 where it drew none.
        scale: `(B, C, ...)` float32, by what it multiplied them; 0 in a step without noise, such as the last one.
    """

    sample: Tensor
    noise: Tensor
    scale: Tensor


class Move(Protocol):
    """The scheduler's step. Each call begins from the same state of the scheduler; the last one counts."""

    def __call__(self, *, sample: Tensor | None = None, model_output: Tensor | None = None) -> Tensor:
        """The next sample `(B, C, ...)`; with other arguments than those of the state where they are given."""

    def drawn(self) -> Drawn:
        """Make the step, and tell the noise in it.

        Raises:
            ValueError: for a scheduler that draws other numbers than one for each number of the sample.
        """


class BeforeStep(Protocol):
    """What a transition can know of the step that is about to be made; `fk_reward.sampling.transitions.StepState`."""

    @property
    def index(self) -> int:
        """0-based index of the step."""

    @property
    def num_steps(self) -> int | None:
        """Steps of the run; None where that is not known."""

    @property
    def sample(self) -> Tensor:
        """`(B, C, ...)`, as `scheduler.step` got it: `alpha * x0 + sigma * noise`."""

    @property
    def alpha_sigma(self) -> tuple[float, float]:
        """Alpha and sigma of the sample."""

    def x0_pred(self) -> Tensor:
        """`(B, C, ...)`, the predicted clean sample of this step."""


class Transition(Protocol):
    """How a particle moves.

    A transition that has an attribute `needs_noise = True` is refused with a deterministic scheduler, also where no
    particle is copied.
    """

    def __call__(self, state: BeforeStep, move: Move, score: Score) -> Moved:
        """Make one step.

        Args:
            state: before it.
            move: the scheduler's own step. It must be called at least once.
            score: rewards of predicted clean samples, for proposals that look at them.
        """


@runtime_checkable
class MovingSearch(SearchConfig, Protocol):
    """Settings of a search that moves its particles itself.

    Attributes:
        needs_gradients: whether its moves follow the gradient of the reward, so that a reward without one is refused.
    """

    needs_gradients: ClassVar[bool]

    def transition(self, population: Population) -> Transition:
        """The moves of one call.

        Args:
            population: of this call.
        """
