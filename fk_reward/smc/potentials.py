"""Potentials: what a reward at a scoring step adds to the log-weight of its particle.

A potential is a function of the new rewards and of what the particle's ancestry has seen so far. It returns the
increment in units of the reward; the particle filter multiplies it by `reward_scale` (the lambda of Singhal et al.
2025, arXiv 2501.06848). Whatever the intermediate potentials are, the particle filter adds at the end the terminal
correction `lambda * r_final - (sum of the earlier increments along the ancestry)`, so that each of them targets `p(x)
exp(lambda r(x))`.

A step can have a weight, `beta_i`: early predictions say little of the finished image, so that their rewards should
decide little (Kim et al. 2025, arXiv 2501.05803, temper the reward for the same reason). `difference` is then that of
`beta_i r_i`, so that its intermediate targets are `p(x) exp(lambda beta_i r)`; the others are multiplied by `beta_i`.
None of them depends on where the scale of the reward has its zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from fk_reward.value_checks import real_number

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT = "constant"
RISING = "rising"
"""Words for the weights of the scoring steps: 1, and the share of the signal in the samples of the step."""


@dataclass(frozen=True)
class PathStatistics:
    """What is remembered of the rewards along the ancestry of each particle; every tensor is `(G, K)` float64.

    Attributes:
        last: weighted reward at the previous scoring step, `beta_{i-1} r_{i-1}`; 0 before the first.
        maximum: largest reward so far, `-inf` before the first.
        total: sum of the weighted rewards so far.
        increments: sum of the increments so far, in units of the reward.
        weight: `beta_i` of the step that is being weighed, at least 0.
    """

    last: Tensor
    maximum: Tensor
    total: Tensor
    increments: Tensor
    weight: float = 1.0

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
        weighted = self.weight * rewards
        updated = {
            "last": weighted,
            "maximum": torch.maximum(self.maximum, rewards),
            "total": self.total + weighted,
            "increments": self.increments + increments,
        }
        if groups is not None:
            updated = {name: torch.where(groups[:, None], new, getattr(self, name)) for name, new in updated.items()}
        return PathStatistics(weight=self.weight, **updated)

    def gather(self, ancestors: Tensor) -> PathStatistics:
        """Statistics of the offspring; `ancestors` is `(G, K)` with indices within the group."""
        return replace(self, **{name: getattr(self, name).gather(1, ancestors) for name in _OF_PARTICLES})


_OF_PARTICLES = tuple(f.name for f in fields(PathStatistics) if f.name != "weight")

Potential: TypeAlias = "Callable[[Tensor, PathStatistics], Tensor]"
"""Rewards `(G, K)` and the statistics before this step, to increments `(G, K)` in units of the reward.

The weight of the step is `path.weight`; the rewards come as they are.
"""


def difference(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Difference potential, `beta_i r_i - beta_{i-1} r_{i-1}` with `r_0 = 0`: Singhal et al. (2025), with all beta 1.

    Example:
        >>> path = PathStatistics.initial(1, 2)
        >>> difference(torch.tensor([[1.0, 3.0]]), path)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return path.weight * rewards - path.last


def maximum(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Max potential, `beta_i max(r_1, ..., r_i)`: Singhal et al. (2025), with all beta 1.

    Not the largest weighted reward: where rewards are negative that would be the first, which weighs least.

    Example:
        >>> path = PathStatistics.initial(1, 2)
        >>> maximum(torch.tensor([[1.0, 3.0]]), path)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return path.weight * torch.maximum(path.maximum, rewards.to(torch.float64))


def running_sum(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Sum potential, `beta_1 r_1 + ... + beta_i r_i`: Singhal et al. (2025), with all beta 1.

    Example:
        >>> path = PathStatistics.initial(1, 2)
        >>> running_sum(torch.tensor([[1.0, 3.0]]), path)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return path.total + path.weight * rewards


def immediate(rewards: Tensor, path: PathStatistics) -> Tensor:
    """Immediate potential, `beta_i r_i` alone, without memory of the path (the public FK code calls it "rt").

    Example:
        >>> immediate(torch.tensor([[1.0, 3.0]]), PathStatistics.initial(1, 2))
        tensor([[1., 3.]], dtype=torch.float64)
    """
    return path.weight * rewards.to(torch.float64)


POTENTIALS: dict[str, Potential] = {
    "difference": difference,
    "max": maximum,
    "sum": running_sum,
    "immediate": immediate,
}
"""Potentials by the name that `FKSteeringConfig.potential` takes."""


def checked_weights(value: object, num_resamples: int) -> tuple[float, ...] | str:
    """The weights of the scoring steps, as `reward_weight` takes them.

    Args:
        value: `"constant"`, `"rising"`, numbers, or numbers in a text, as they are typed.
        num_resamples: how many scoring steps there are.

    Raises:
        TypeError: for what is neither a word nor numbers.
        ValueError: for an unknown word, another number of numbers, or one below 0.

    Example:
        >>> checked_weights("0.25, 1", 2)
        (0.25, 1.0)
    """
    if isinstance(value, str) and value in (CONSTANT, RISING):
        return value
    wanted = f'reward_weight should be "{CONSTANT}", "{RISING}" or {num_resamples} numbers, one for each scoring step'
    try:
        given = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        numbers = [float(one) if isinstance(one, str) else one for one in given]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{wanted}, got {value!r}.") from error
    if len(numbers) != num_resamples or not numbers:
        raise ValueError(f"{wanted} (num_resamples), got {value!r}.")
    return tuple(float(real_number(f"reward_weight[{i}]", one, low=0.0)) for i, one in enumerate(numbers))
