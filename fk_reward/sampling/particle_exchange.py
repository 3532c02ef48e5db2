"""Particles of one prompt in several processes: which are this one's, and how all of them are brought together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from fk_reward.sampling.process_link import ProcessLink


@dataclass(frozen=True, kw_only=True)
class ParticleExchange:
    """The place of a process among those that share the particles of each prompt.

    Every process holds the same share of every prompt: of K particles in W processes, process w has those from
    `w * K / W` on. Weights and ancestors are computed by all processes from the same numbers, so that they agree
    without being sent.

    Attributes:
        num_groups: G, number of prompts.
        num_particles: K, particles of a prompt in all processes together.
        num_processes: W.
        process: w, in [0, W).
        link: how the processes learn of one another's failures; without one a process that fails leaves the others
            waiting in `gather` until the group's time-out.

    Raises:
        ValueError: when K is not a multiple of W.

    Example:
        >>> import torch
        >>> exchange = ParticleExchange(num_groups=2, num_particles=4, num_processes=2, process=1)
        >>> exchange.own(torch.arange(8))
        tensor([2, 3, 6, 7])
    """

    num_groups: int
    num_particles: int
    num_processes: int = 1
    process: int = 0
    link: ProcessLink | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_particles % self.num_processes:
            raise ValueError(
                f"{self.num_particles} particles cannot be shared by {self.num_processes} processes: "
                "num_particles should be a multiple of the number of processes."
            )

    @property
    def num_own(self) -> int:
        """Particles of a prompt in this process, K / W."""
        return self.share(self.num_particles)

    def share(self, num_particles: int) -> int:
        """Particles of a prompt in this process when there are so many in all processes; K may shrink on the way.

        Example:
            >>> ParticleExchange(num_groups=1, num_particles=8).share(2)
            2
        """
        return num_particles // self.num_processes

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows `(G * K / W, ...)` of all rows `(G * K, ...)`; both are prompt-major."""
        if self.num_processes == 1:
            return rows
        return rows.unflatten(0, (self.num_groups, self.num_processes, self.num_own))[:, self.process].flatten(0, 1)

    def gather(self, rows: Tensor) -> Tensor:
        """All rows `(G * K, ...)` of each process's own `(G * K / W, ...)`. Every process has to call it."""
        if self.num_processes == 1:
            return rows
        if self.link is not None:
            self.link.meet_for(f"rows of shape {tuple(rows.shape)} and {rows.dtype}")
        by_process = self._gather(rows.detach()).unflatten(0, (self.num_processes, self.num_groups, self.num_own))
        return by_process.transpose(0, 1).flatten(0, 2)

    def _gather(self, rows: Tensor) -> Tensor:
        """Process by process, on the device of the rows; processes exchange tensors on their own device only."""
        from accelerate import PartialState  # noqa: PLC0415 (slow to import, and one process does not need it)
        from accelerate.utils import gather  # noqa: PLC0415

        return gather(rows.to(PartialState().device)).to(rows.device)

    def take(self, rows: Tensor, ancestors: Tensor) -> Tensor:
        """This process's rows after resampling, wherever their ancestors were.

        Args:
            rows: `(G * K / W, ...)`.
            ancestors: `(G * K,)` int64, flat indices over all processes.
        """
        return self.gather(rows)[self.own(ancestors).to(rows.device)]

    @contextmanager
    def telling_failures(self) -> Iterator[None]:
        """Tell the other processes when the body of the `with` statement fails."""
        with nullcontext() if self.link is None else self.link:
            yield

    def gather_scores(self, score: Callable[[Tensor], Tensor], x0_pred: Tensor) -> Tensor:
        """Scores `(G * K,)` of all particles, of which each process computes its own.

        Args:
            score: predicted clean samples `(G * K / W, C, ...)` to scores `(G * K / W,)`.
            x0_pred: `(G * K / W, C, ...)`.
        """
        scores = score(x0_pred)
        return self.gather(scores.float() if self.num_processes > 1 else scores)
