"""General preferences: vectors compared by a skew-symmetric form, which can hold cycles that no scalar reward can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def preference_logits(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    """Logit of the preference of each row of `a` over the same row of `b`.

    s(a > b) = (a_0 b_1 - a_1 b_0 + a_2 b_3 - a_3 b_2 + ...) / temperature: the General Preference Model of Zhang et al.
    2024 (arXiv 2410.02197) with 2 x 2 blocks of equal weight, in the sign of the official LLaVA-Reward losses.

    Args:
        a: (B, d) vectors of the reward.
        b: (B, d) vectors to compare with.
        temperature: positive; 0.1 in the official rewards.

    Returns:
        (B,); the sigmoid of it is the probability that `a` is preferred. Swapping `a` and `b` turns the sign.

    Raises:
        ValueError: when the shapes differ, d is odd or the temperature is not positive.

    Example:
        >>> preference_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=0.5)
        tensor([2.])

    B: number of pairs, d: even size of the vectors.
    """
    _check(a, temperature)
    if a.shape != b.shape:
        raise ValueError(f"Both sides need the same shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
    return (a[:, 0::2] * b[:, 1::2] - a[:, 1::2] * b[:, 0::2]).sum(dim=-1) / temperature


def mean_preference(vectors: Tensor, prompts: Sequence[str], *, temperature: float) -> Tensor:
    """Reward of each image among the images of its prompt: its mean preference logit against the others.

    This is how a general preference steers particles, which are only ever compared within one prompt. The reward is
    relative: unlike all other rewards it changes with the other images of the same prompt. The rewards of one prompt
    add up to 0, and a prompt with a single image gets 0, as there is nothing to compare it with.

    Args:
        vectors: (B, d) vectors of the reward.
        prompts: B strings; rows with equal strings are compared.
        temperature: positive; 0.1 in the official rewards.

    Returns:
        (B,).

    Raises:
        ValueError: when the counts differ, d is odd or the temperature is not positive.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> mean_preference(vectors, ["a cat", "a cat", "a dog"], temperature=1.0)
        tensor([ 1., -1.,  0.])

    B: number of images, d: even size of the vectors.
    """
    _check(vectors, temperature)
    if len(prompts) != len(vectors):
        raise ValueError(f"Give one prompt for each vector: got {len(prompts)} prompts for {len(vectors)} vectors.")
    even, odd = vectors[:, 0::2], vectors[:, 1::2]
    logits = (even @ odd.T - odd @ even.T) / temperature
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    groups = torch.tensor([numbers[prompt] for prompt in prompts], device=vectors.device)
    others = (groups[:, None] == groups).fill_diagonal_(False)
    return logits.where(others, 0.0).sum(dim=1) / others.sum(dim=1).clamp(min=1)


def _check(vectors: Tensor, temperature: float) -> None:
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.shape[1] % 2:
        raise ValueError(f"Vectors of a general preference need shape (B, d) with even d, got {tuple(vectors.shape)}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
