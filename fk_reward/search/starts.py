"""Searches over starts: whole trajectories, drawn in several passes of the pipeline.

Most searches say who goes on inside one pass (`SearchConfig`, `Population`). A search over starts (`StartSearch`) asks
the pipeline for whole trajectories (`Rollout`) as often as it likes, and answers with what it would return (`Scored`).

Letters of shapes: G prompts, K particles of a prompt in a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from fk_reward.search.base import LONG_RUN, Forecast, PlainPopulation, Population, SearchConfig

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """Whole trajectories and what they are worth, one row each.

    Attributes:
        noise: `(G * K, ...)`, the starts, in the form in which the pipeline's call takes `latents`; of a pass that
            began inside the trajectory, the samples that it began with.
        latents: `(G * K, ...)`, the finished samples, as the last step of the scheduler left them.
        rewards: `(G * K,)` float32 on the CPU, of the finished images; `-inf` forbids one.
        images: of the same rows, as the pipeline returned them; what `pipe(...)` returns is taken from here.
        flagged: `(G * K,)` bool, images that a safety checker blacked out; None where nothing was checked.
        thumbnails: `(G * K, 3, h, w)` uint8, for the trace; None where there are none.
        reward_parts: name -> `(G * K,)`, what the parts of a composed reward gave.
        log_weights: `(G * K,)` float64, of the particles of a pass that was itself a search with weights.
        log_evidence: `(G * K,)` float64, of the prompt's run that the row is of, in such a pass.
        notes: sentences about this search that its user should know; they stand in the trace.
    """

    noise: Tensor
    latents: Tensor
    rewards: Tensor
    images: Any = None
    flagged: Tensor | None = None
    thumbnails: Tensor | None = None
    reward_parts: Mapping[str, Tensor] = field(default_factory=dict)
    log_weights: Tensor | None = None
    log_evidence: Tensor | None = None
    notes: tuple[str, ...] = ()

    def take(self, rows: Tensor) -> Scored:
        """Some of the rows, in this order.

        Example:
            >>> noise = torch.zeros(3, 1)
            >>> Scored(noise=noise, latents=noise, rewards=torch.arange(3.0)).take(torch.tensor([2, 0])).rewards
            tensor([2., 0.])
        """
        return Scored(**{name: _rows(getattr(self, name), rows) for name in _row_fields()}, notes=self.notes)

    def where(self, mask: Tensor, other: Scored) -> Scored:
        """Its rows where the mask `(B,)` says so, and those of the other elsewhere.

        Example:
            >>> one = Scored(noise=torch.zeros(2, 1), latents=torch.zeros(2, 1), rewards=torch.ones(2))
            >>> two = Scored(noise=torch.zeros(2, 1), latents=torch.zeros(2, 1), rewards=torch.zeros(2))
            >>> one.where(torch.tensor([True, False]), two).rewards
            tensor([1., 0.])
        """
        rows = torch.arange(len(mask))
        return Scored.join([self, other]).take(torch.where(mask, rows, rows + len(mask)))

    @classmethod
    def join(cls, parts: Sequence[Scored]) -> Scored:
        """The rows of several passes, one pass after the other; `take` brings them into the order of the prompts."""
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        return cls(**{name: _joined([getattr(part, name) for part in parts]) for name in _row_fields()}, notes=notes)


def _row_fields() -> list[str]:
    return [one.name for one in fields(Scored) if one.name != "notes"]


def _rows(value: Any, rows: Tensor) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _rows(part, rows) for name, part in value.items()}
    if isinstance(value, list):
        return [value[row] for row in rows.tolist()]
    return value[rows.to(value.device)] if isinstance(value, torch.Tensor) else value[rows.numpy()]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: _joined([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [item for value in values for item in value]
    return torch.cat(tuple(values)) if isinstance(first, torch.Tensor) else np.concatenate(values)


class Rollout(Protocol):
    """Whole trajectories, for searches over starts: each call of it is one pass of the pipeline."""

    @property
    def num_steps(self) -> int:
        """`num_inference_steps` of the caller: those of a whole trajectory."""

    def __call__(  # noqa: PLR0913 (one parameter for each option)
        self,
        start: Tensor | None = None,
        *,
        from_step: int = 0,
        num_particles: int,
        num_steps: int | None = None,
        particles: Tensor | None = None,
        noise: Tensor | None = None,
        fresh_noise: bool = False,
        search: SearchConfig | None = None,
    ) -> Scored:
        """Draw, finish and score.

        Args:
            start: `(G * K, ...)`: noise as the pipeline's call takes it as `latents`, or samples at the level of
                `from_step`; None for the noise that the pipeline draws from the caller's generators.
            from_step: the first scheduler step that is made.
            num_particles: K, of this pass; at most that of the config.
            num_steps: `num_inference_steps` of this pass; None for the caller's.
            particles: `(G * K,)` int64, which of the call's own particles (prompt-major, `num_particles` of the config
                each) the rows are, of those of the pass before: where the caller gave a generator for each, these are
                theirs. None for the first ones of each prompt.
            noise: `(G * K, ...)` standard normal numbers that bring `start`, which is then finished samples (`latents`
                of a `Scored`), to the level of `from_step`: `alpha * start + sigma * noise`. Needs a pass of the same
                number of steps before, which tells the levels. None where `start` is at that level.
            fresh_noise: whether the steps draw new numbers: the caller's generators go on from where the pass before
                has left them. False: every pass begins with them in the same state, so that a start of the pass before
                meets the same numbers again.
            search: who goes on inside this pass, of `num_particles` particles throughout; None for all of them.
        """

    def note(self, sentence: str) -> None:
        """Leave a sentence in the trace that the user should know of this search."""


@runtime_checkable
class StartSearch(SearchConfig, Protocol):
    """Settings of a search over starts, which draws whole trajectories in several passes of the pipeline.

    Its `population` selects among the images of the end: its `num_particles` are those that are finished, and its
    `forecast` is that of all passes together (`Passes`).
    """

    def run(self, rollout: Rollout, *, num_groups: int, generators: Sequence[Generator]) -> Scored:
        """Search.

        Args:
            rollout: draws and scores, a pass for each call.
            num_groups: G, prompts.
            generators: one for each prompt, on the CPU: the source of the search's own randomness.

        Returns:
            The images to select from: those of a pass, or rows of several of them.
        """


class Passes(PlainPopulation):
    """The finished images of a search over starts, of which the best are selected.

    Args:
        passes: for a whole trajectory of so many steps, (particles of a prompt, steps) of each pass in their order.
        num_groups: G.
        finished: images of a prompt to select from.
        abstain: as of `PlainPopulation`.

    Example:
        >>> Passes(lambda num_steps: ((3, 2), (1, num_steps)), finished=1).forecast(4)
        Forecast(steps=(3, 3, 1, 1, 1, 1), scorings=(3,), finished=1)
    """

    inside: Population | None = None
    """The population of a search that goes on inside each pass, one prompt of it; None where all only finish."""

    def __init__(
        self,
        passes: Callable[[int], Sequence[tuple[int, int]]],
        num_groups: int = 1,
        *,
        finished: int,
        abstain: bool = False,
    ) -> None:
        super().__init__(finished, num_groups, abstain=abstain, max_particles=max(size for size, _ in passes(LONG_RUN)))
        self._passes = passes

    def passes(self, num_steps: int) -> Sequence[tuple[int, int]]:
        """(Particles of a prompt, `num_inference_steps`) of each pass, where a whole trajectory has so many steps."""
        return self._passes(num_steps)

    def forecast(self, num_steps: int) -> Forecast:
        """Pass after pass; the images of all but the last are scored on the way."""
        passes = self.passes(num_steps)
        steps = tuple(size for size, length in passes for _ in range(length))
        return Forecast(steps, tuple(size for size, _ in passes[:-1]), self.first_particles)
