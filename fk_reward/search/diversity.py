"""Group selection: several images of a prompt that are good, and that differ."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch

from fk_reward.value_checks import real_number

if TYPE_CHECKING:
    from torch import Tensor

DIVERSE = "diverse"
"""The `selection` of a search whose images are chosen as a group."""

MOST_GROUPS = 20_000
"""Up to so many groups are all compared; of more, one is built greedily."""


def diverse_group(
    rewards: Tensor, distances: Tensor, number: int, *, weight: float = 1.0, most_groups: int = MOST_GROUPS
) -> tuple[Tensor, bool]:
    """The group of images with the best sum of quality and diversity.

    Of a group, quality is the mean of its rewards in standard deviations of all K, and diversity the mean distance of
    its pairs in mean distances of all pairs; it has the highest quality + weight * diversity. That is max-sum
    diversification (Borodin, Lee and Ye 2012, arXiv 1203.6397). Where there are more than `most_groups` groups, it
    begins with the image of the highest reward and adds the one that gains most, again and again (their greedy rule).

    Args:
        rewards: `(K,)`; those of -inf are left out.
        distances: `(K, K)`, symmetric, at least 0, zero on the diagonal, of any unit.
        number: n, images of the group, at most the number of rewards that are not -inf.
        weight: of diversity. 0 takes the n best images.
        most_groups: how many groups are compared at most.

    Returns:
        `(n,)` int64 places, highest reward first, and whether all groups were compared.

    Raises:
        ValueError: for another number of images or shape.

    Example:
        >>> rewards = torch.tensor([1.0, 0.9, 0.5])
        >>> distances = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])  # the first two are copies
        >>> diverse_group(rewards, distances, 2)
        (tensor([0, 2]), True)
        >>> diverse_group(rewards, distances, 2, weight=0.0)
        (tensor([0, 1]), True)
    """
    allowed = (rewards > -torch.inf).nonzero().flatten()
    if tuple(distances.shape) != (len(rewards), len(rewards)) or not 1 <= number <= len(allowed):
        raise ValueError(
            f"A group of {number} images needs rewards (K,) of which as many are allowed, and distances (K, K); got "
            f"{len(allowed)} allowed of {len(rewards)}, and distances {tuple(distances.shape)}."
        )
    quality = _standardised(rewards.to("cpu", torch.float64)[allowed])
    gain = weight * _in_means(distances.to("cpu", torch.float64)[allowed][:, allowed])
    exact = math.comb(len(allowed), number) <= most_groups
    found = _best_of_all(quality, gain, number) if exact else _greedy(quality, gain, number)
    return allowed[found[quality[found].argsort(descending=True, stable=True)]], exact


def feature_distances(features: Tensor, *, angular: bool) -> Tensor:
    """Pairwise distances of images by their features.

    Args:
        features: `(K, ...)`, such as latents or the embedding of CLIP.
        angular: one minus the cosine, as embeddings are compared; False for the root mean square difference.

    Returns:
        `(K, K)` float32.

    Example:
        >>> feature_distances(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), angular=True)[0, 1]
        tensor(1.)
    """
    flat = features.flatten(1).float()
    if not angular:
        return torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    unit = torch.nn.functional.normalize(flat, dim=1)
    return (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(0)


def checked_group_selection(selection: object, weight: object) -> float:
    """The weight of diversity, checked, and the selection of a search that has the best images or a diverse group.

    Raises:
        TypeError: for a weight that is no number.
        ValueError: for another selection, or a negative weight.

    Example:
        >>> checked_group_selection("diverse", 0.5)
        0.5
    """
    if selection not in ("best", DIVERSE):
        raise ValueError(f"selection should be one of ['best', {DIVERSE!r}], got {selection!r}.")
    return real_number("diversity_weight", weight, low=0.0)


def diverse_groups(
    rewards: Tensor, features: Tensor, selected: Tensor, *, angular: bool, weight: float
) -> tuple[Tensor, bool]:
    """Diverse groups of each prompt; a prompt that has too few allowed images keeps those that it has.

    Args:
        rewards: `(G, K)`.
        features: `(G * K, ...)`, as of `feature_distances`.
        selected: `(G, n)` int64, what the search itself selects.
        angular: as of `feature_distances`.
        weight: of diversity.

    Returns:
        `(G, n)` int64, highest reward first, and whether all groups were compared.

    Example:
        >>> rewards, features = torch.tensor([[3.0, 2.9, 1.0]]), torch.tensor([[0.0], [0.0], [1.0]])
        >>> diverse_groups(rewards, features, torch.tensor([[0, 1]]), angular=False, weight=2.0)
        (tensor([[0, 2]]), True)
    """
    chosen, exact = selected.clone(), True
    for group, own in enumerate(features.unflatten(0, (len(rewards), -1))):
        if int((rewards[group] > -torch.inf).sum()) >= selected.shape[1]:
            distances = feature_distances(own, angular=angular)
            chosen[group], compared = diverse_group(rewards[group], distances, selected.shape[1], weight=weight)
            exact &= compared
    return chosen, exact


def _standardised(rewards: Tensor) -> Tensor:
    spread = rewards.std(correction=0) if len(rewards) > 1 else torch.zeros(())
    return (rewards - rewards.mean()) / (spread if float(spread) > 0 else 1.0)


def _in_means(distances: Tensor) -> Tensor:
    """In units of the mean over pairs; as they are where all are equal."""
    pairs = len(distances) * (len(distances) - 1)
    mean = float(distances.sum()) / pairs if pairs else 0.0
    return distances / mean if mean > 0 else distances


def _best_of_all(quality: Tensor, gain: Tensor, number: int) -> Tensor:
    groups = torch.tensor(list(itertools.combinations(range(len(quality)), number)))
    pairs = max(number * (number - 1), 1)
    values = quality[groups].mean(1) + gain[groups[:, :, None], groups[:, None, :]].sum((1, 2)) / pairs
    return groups[values.argmax()]


def _greedy(quality: Tensor, gain: Tensor, number: int) -> Tensor:
    chosen = [int(quality.argmax())]
    pairs = max(number * (number - 1) / 2, 1)
    while len(chosen) < number:
        more = quality / number + gain[chosen].sum(0) / pairs
        more[chosen] = -torch.inf
        chosen.append(int(more.argmax()))
    return torch.tensor(chosen)
