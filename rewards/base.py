"""The base class of rewards: a subclass writes `score`, callers use the instance as a function."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from fk_reward.rewards.arithmetic import RewardArithmetic
from fk_reward.rewards.card import RewardCard
from fk_reward.rewards.inputs import ImageGroup, Images, group_by_size, prompt_list

_AS_TENSOR = "torch.as_tensor(scores), of one float an image"

RewardT = TypeVar("RewardT", bound="Reward")


_BATCH_LIMITS: ContextVar[Mapping[int, int]] = ContextVar("batch_limits", default=MappingProxyType({}))
"""Id of a reward -> images that it may score at once, of the `limited_to` blocks that this thread is in."""


class NonFiniteScoreError(ValueError):
    """A reward gave a score that is NaN, `+inf`, or too large for float32. `-inf` is a score: it forbids an image.

    Attributes:
        score: the score.
        index: place of the image in the caller's order.
        prompt: its prompt.
    """

    def __init__(self, name: str, score: float, index: int, prompt: str) -> None:
        super().__init__(f"Reward {name!r} gave {score} for image {index}, prompt {prompt!r}.")
        self.score, self.index, self.prompt = score, index, prompt


class Reward(RewardArithmetic, abc.ABC):
    """A score of images given prompts; higher is better unless the card says otherwise.

    A subclass sets `card` and writes `score`, nothing else. Modules that it keeps as attributes are found by
    `to` and `device`. Rewards add up and scale: `0.7 * a + 0.3 * b` is a `CompositeReward`.

    Attributes:
        card: what a person should know about the reward.
        batch_size: number of images that `score` sees at once; None for all images of one size.

    Example:
        >>> class Redness(Reward):
        ...     card = RewardCard(name="redness", summary="mean of the red channel", differentiable=True)
        ...
        ...     def score(self, images, prompts):
        ...         return images[:, 0].mean(dim=(1, 2))
        >>> Redness()(torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 3, 8, 8), "anything red")
        tensor([0.2500, 0.7500])
    """

    card: RewardCard
    batch_size: int | None = None

    @abc.abstractmethod
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images that are already in one form.

        The score of an image must not depend on the other images of the batch.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], on the reward's device; a copy, which may be written to.
            prompts: B strings; a list of its own, too.

        Returns:
            (B,) floating; finite, or `-inf` for an image that is forbidden.

        B: number of images, H: height, W: width.
        """

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Check and convert the input, score it in batches, check the scores.

        Args:
            images: tensor (B, 3, H, W) in [0, 1], PIL images, arrays, or a list of them; `group_by_size` in
                `inputs.py` has the rules.
            prompts: B strings, or one string for all images.

        Returns:
            (B,) float32 in the order of the images, on the images' device (CPU for PIL images and arrays), with the
            gradient to the images if the reward is differentiable and they ask for it.

        Raises:
            TypeError: for images, prompts or scores of the wrong type.
            ValueError: for images of the wrong shape or range, unequal counts, and scores of the wrong shape.
            NonFiniteScoreError: a ValueError, for a score that is NaN or `+inf`; it names image and prompt.
        """
        groups = group_by_size(images)
        prompts = prompt_list(prompts, sum(len(group.indices) for group in groups))
        batches = [batch for group in groups for batch in group.split(self._checked_batch_size())]
        scores = torch.cat([self._score_batch(batch, [prompts[i] for i in batch.indices]) for batch in batches])
        order = torch.tensor([i for batch in batches for i in batch.indices], device=scores.device)
        return scores[order.argsort()]

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Call the reward; a composition also gives the scores (B,) of its parts by name, any other reward none."""
        return self(images, prompts), {}

    @property
    def compares_images(self) -> bool:
        """Whether a score depends on which other images of the prompt are in the call. Scores of single images: False.

        Only rewards that override `__call__` to compare say True; `score` never compares.
        """
        return False

    @property
    def shared_pass(self) -> Hashable | None:
        """What makes one forward pass do for several rewards; None where there is no such thing.

        Compositions score parts whose values are equal and not None by `score_together`.
        """
        return None

    def score_together(self, others: Sequence[Reward], images: Images, prompts: str | Sequence[str]) -> list[Tensor]:
        """Score with this reward and others of equal `shared_pass`: what calling each gives, in that order."""
        return [reward(images, prompts) for reward in (self, *others)]

    @contextmanager
    def limited_to(self, batch_size: int) -> Iterator[None]:
        """Let `score` see at most `batch_size` images at once inside a `with` block; a smaller own `batch_size` holds.

        A call still gets all images, so that a reward that compares them gives what it gives without the limit. Only
        the thread that is inside the block is limited, and `batch_size` is left alone.

        Raises:
            ValueError: when a batch size is not an integer of at least 1.
        """
        own, limits = self._checked_batch_size(), _BATCH_LIMITS.get()
        _check_batch_size(batch_size)
        token = _BATCH_LIMITS.set({**limits, id(self): min(own or batch_size, batch_size)})
        try:
            yield
        finally:
            _BATCH_LIMITS.reset(token)

    @property
    def device(self) -> torch.device | None:
        """Device of the weights; None for a reward without weights, which scores images where they are."""
        return next((tensor.device for module in self._held_modules() for tensor in _tensors(module)), None)

    def to(self: RewardT, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> RewardT:
        """Move the weights to a device, a floating dtype, or both, in place; return the reward itself."""
        for module in self._held_modules():
            module.to(device=device, dtype=dtype)
        return self

    def modules_to_compile(self) -> list[nn.Module]:
        """Networks whose repeated blocks are worth compiling: all that the reward holds.

        A subclass leaves out what runs once a prompt, such as the text tower of CLIP.
        """
        return list(self._held_modules())

    def _held_modules(self) -> Iterator[nn.Module]:
        return (value for value in vars(self).values() if isinstance(value, nn.Module))

    def _checked_batch_size(self) -> int | None:
        """Images that `score` sees at once here and now, the limits of `limited_to` included; None for all."""
        _check_batch_size(self.batch_size)
        limit = _BATCH_LIMITS.get().get(id(self))
        return self.batch_size if limit is None else min(self.batch_size or limit, limit)

    def _score_batch(self, batch: ImageGroup, prompts: list[str]) -> Tensor:
        # A copy even on the same device: a reward that normalises in place would change the caller's images, what other
        # rewards read, and what a steered call returns.
        scores = self.score(batch.images.to(self.device, copy=True), prompts)
        self._check_scores(scores, batch.indices, prompts)
        return scores.to(device=batch.images.device, dtype=torch.float32)

    def _check_scores(
        self, scores: Tensor, indices: tuple[int, ...], prompts: list[str], *, forbidden: Tensor | None = None
    ) -> None:
        """Check type, shape and values; `forbidden` (B,) says which may be `-inf`, by default those that are."""
        name = self.card.name
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            is_tensor = isinstance(scores, Tensor)
            got, remedy = (scores.dtype, "scores.float()") if is_tensor else (type(scores).__name__, _AS_TENSOR)
            raise TypeError(f"Reward {name!r} must return a floating tensor, got {got}: return {remedy}.")
        if scores.shape != (len(indices),):
            hint = ": return scores.squeeze(1)" if scores.shape == (len(indices), 1) else ""
            raise ValueError(
                f"Reward {name!r} must return shape ({len(indices)},), one score an image, got "
                f"{tuple(scores.shape)}{hint}."
            )
        forbidden = scores.detach().isneginf() if forbidden is None else forbidden
        kept = scores.detach().to(torch.float32)  # which makes -inf of -1e300
        wrong = kept.isnan() | kept.isposinf() | (kept.isneginf() & ~forbidden)
        if wrong.any():
            bad = int(wrong.nonzero()[0])
            raise NonFiniteScoreError(name, scores[bad].item(), indices[bad], prompts[bad])


def _check_batch_size(size: int | None) -> None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"batch_size must be None or an integer of at least 1, got {size!r}.")


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
