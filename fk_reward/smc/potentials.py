"""Potentials: what a reward at a scoring step adds to the log-weight of its particle.

A potential is a function of the new rewards and of what the particle's ancestry has seen so far. It returns the
increment in units of the reward; the particle filter multiplies it by `reward_scale` (the lambda of Singhal et al.
2025, arXiv 2501.06848). Whatever the intermediate potentials are, the particle filter adds at the end the terminal
correction `lambda * r_final - (sum of the earlier increments along the ancestry)`, so that each of them targets `p(x)
exp(lambda r(x))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PathStatistics:
    """What is remembered of the rewards along the ancestry of each particle; every tensor is `(G, K)` float64.

    Attributes:
        last: reward at the previous scoring step, 0 before the first.
        maximum: largest reward so far, `-inf` before the first.
        total: sum of the rewards so far.
        increments: sum of the increments so far, in units of the reward.
    """

    last: Tensor
    maximum: Tensor
    total: Tensor
    increments: Tensor

    @classmethod
    def initial(cls, num_groups: int, num_particles: int) -> PathStatistics:
        """Statistics before the first scoring step.

        Example:
            >>> PathStatistics.initial(1, 2).maximum
            tensor([[-inf, -inf]], dtype=torch.float64)
        """
        zeros = torch.zeros(num_groups, num_particles, dtype=torch.float64)
        return cls(last=zeros, maximum=torch.full_like(zeros, -torch.inf), total=zeros, increments=zeros)

    def update(self, rewards: Tensor, increments: Tensor, *, groups: Tensor | None = None) -> PathStatistics:
        """Statistics after a scoring step.

        Args:
            rewards: `(G, K)`.
            increments: `(G, K)`.
            groups: `(G,)` bool, those that were scored; the others keep their statistics. None for all.
        """
        updated = {
            "last": rewards,
            "maximum": torch.maximum(self.maximum, rewards),
            "total": self.total + rewards,
            "increments": self.increments + increments,
        }
        if groups is not None:
            updated = {name: torch.where(groups[:, None], new, getattr(self, name)) for name, new in updated.items()}
        return PathStatistics(**updated)

    def gather(self, ancestors: Tensor) -> PathStatistics:
        """Statistics of the offspring; `ancestors` is `(G, K)` with indices within the group."""
        return replace(self, **{f.name: getattr(self, f.name).gather(1, ancestors) for f in fields(self)})


Potential = Callable[[Tensor, PathStatistics], Tensor]
"""Rewards `(G, K)` and the statistics before this step, to increments `(G, K)` in units of the reward."""


def difference(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Difference potential, `r_i - r_{i-1}` with `r_0 = 0`: Singhal et al. (2025).

    Example:
        >>> path = PathStatistics.initial(1, 2)
        >>> difference(torch.tensor([[1.0, 3.0]]), path)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return rewards - path.last


def maximum(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Max potential, `max(r_1, ..., r_i)`: Singhal et al. (2025).

    Example:
        >>> path = PathStatistics.initial(1, 2)
        >>> maximum(torch.tensor([[1.0, 3.0]]), path)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return torch.maximum(path.maximum, rewards.to(torch.float64))


def running_sum(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Sum potential, `r_1 + ... + r_i`: Singhal et al. (2025).

    Example:
        >>> path = PathStatistics.initial(1, 2)
        >>> running_sum(torch.tensor([[1.0, 3.0]]), path)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return path.total + rewards


def immediate(rewards: Tensor, path: PathStatistics) -> Tensor:  # noqa: ARG001 (the signature of all potentials)
    """Immediate potential, `r_i` alone, without memory of the path (the public FK code calls it "rt").

    Example:
        >>> immediate(torch.tensor([[1.0, 3.0]]), PathStatistics.initial(1, 2))
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return rewards.to(torch.float64)


POTENTIALS: dict[str, Potential] = {
    "difference": difference,
    "max": maximum,
    "sum": running_sum,
    "immediate": immediate,
}
"""Potentials by the name that `FKSteeringConfig.potential` takes."""
