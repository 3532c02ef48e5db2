"""A reward and its card: a subclass writes `score`, callers use the instance as a function."""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from fk_reward.rewards.inputs import ImageGroup, Images, group_by_size, prompt_list
from fk_reward.rewards.precision import is_cuda, no_silent_tf32

if TYPE_CHECKING:
    from torch import Tensor, nn

RewardT = TypeVar("RewardT", bound="Reward")

ASPECTS: dict[str, str] = {
    "prompt": "the prompt",
    "quality": "how good the image is",
    "edges": "the edges of images that are not square",
}
"""What a score may be blind to by design: name in `RewardCard.blind_to` -> in words."""


@dataclass(frozen=True, kw_only=True)
class SafetyFacts:
    """What is known of a reward that tells safe images from unsafe ones.

    Attributes:
        safe_above: score above which it calls an image safe, in the unit of the score.
        missed: unsafe images that it called safe, of how many unsafe ones; None where that was not counted.
        false_alarms: safe images that it called unsafe, of how many safe ones; None where that was not counted.
        source: where the counts are from.

    Raises:
        ValueError: for a threshold that is not finite, or counts that cannot be.

    Example:
        >>> SafetyFacts(safe_above=0.5, missed=(3, 400), source="400 rendered scenes").missed
        (3, 400)
    """

    safe_above: float
    missed: tuple[int, int] | None = None
    false_alarms: tuple[int, int] | None = None
    source: str = "not stated"

    def __post_init__(self) -> None:
        _check_text("safety.source", self.source)
        if not math.isfinite(self.safe_above):
            raise ValueError(f"SafetyFacts.safe_above must be finite, got {self.safe_above}.")
        for field in ("missed", "false_alarms"):
            counts = getattr(self, field)
            if counts is not None and not 0 <= counts[0] <= counts[1] >= 1:
                raise ValueError(f"SafetyFacts.{field} must be (count, of at least as many), got {counts}.")


_BATCH_LIMITS: ContextVar[Mapping[int, int]] = ContextVar("batch_limits", default=MappingProxyType({}))
"""Id of a reward -> images that it may score at once, of the `limited_to` blocks that this thread is in."""


@dataclass(frozen=True, kw_only=True)
class RewardCard:
    """Facts about a reward that can be read without loading its weights.

    Attributes:
        name: the name that users type.
        summary: one line that says what is measured.
        higher_is_better: samplers maximise the score. Where this is False, steer with its negative,
            `-reward`.
        typical_range: (low, high), in the unit of the score, within which scores of ordinary images lie. A
            description, not a bound that is enforced; infinite where unknown.
        spread: typical standard deviation of the score among images of one prompt, in the unit of the
            score; None where it is not measured. Steering begins to matter at a `reward_scale` of
            1 / spread; `reward_scale="card"` is 1.5 / spread.
        spread_source: how the spread was found.
        differentiable: whether the gradient of the score with respect to the images is usable.
        max_prompt_tokens: number of tokens that are read of a prompt, special tokens included; None for no
            limit.
        looks_at: which part of an image is read, in words.
        blind_to: what the score need not depend on, by design: names of `ASPECTS`. The doctor asks about the rest.
        biases: what the score is known to favour or to miss, each a line with its source.
        safety: of a reward that tells safe images from unsafe ones, where it draws the line and how often it is wrong;
            None for others.
        licence: licence of the weights (of the code, where there are no weights).
        source: paper or official file that defines the score.
        weights: hub repository, "in the package" or "none".
        memory: memory that the weights take, in words.

    Raises:
        TypeError: when a text or a flag has the wrong type.
        ValueError: when a text is empty, an aspect unknown, the range not increasing, or a number not positive.

    Example:
        >>> RewardCard(name="redness", summary="mean of the red channel", typical_range=(0, 1), spread=0.1).spread
        0.1
    """

    name: str
    summary: str
    higher_is_better: bool = True
    typical_range: tuple[float, float] = (-math.inf, math.inf)
    spread: float | None = None
    spread_source: str = "not stated"
    differentiable: bool = False
    max_prompt_tokens: int | None = None
    looks_at: str = "not stated"
    blind_to: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    safety: SafetyFacts | None = None
    licence: str = "not stated"
    source: str = "not stated"
    weights: str = "none"
    memory: str = "none"

    def __post_init__(self) -> None:
        for field in ("name", "summary", "spread_source", "looks_at", "licence", "source", "weights", "memory"):
            _check_text(field, getattr(self, field))
        for bias in self.biases:
            _check_text("biases", bias)
        if unknown := [name for name in self.blind_to if name not in ASPECTS]:
            raise ValueError(f"RewardCard.blind_to may name {', '.join(ASPECTS)}, got {unknown}.")
        for field in ("higher_is_better", "differentiable"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"RewardCard.{field} must be True or False, got {getattr(self, field)!r}.")
        low, high = self.typical_range
        if not low < high:
            raise ValueError(f"RewardCard.typical_range must be (low, high) with low < high, got {self.typical_range}.")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ValueError(f"RewardCard.spread must be positive and finite, or None, got {self.spread}.")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"RewardCard.max_prompt_tokens must be at least 1, or None, got {self.max_prompt_tokens}.")


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"RewardCard.{field} must be a string, got {type(value).__name__}.")
    if not value.strip() or "\n" in value:
        raise ValueError(f"RewardCard.{field} must be one line of text, got {value!r}.")


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


class Reward(abc.ABC):
    """A score of images given prompts; higher is better unless the card says otherwise.

    A subclass sets `card` and writes `score`, nothing else. Modules that it keeps as attributes are found by
    `to` and `device`. Rewards add up and scale: `0.7 * a + 0.3 * b` is a `CompositeReward`.

    Attributes:
        card: facts about the reward.
        batch_size: number of images that `score` sees at once; None for all images of one size.
        accepts_uint8: whether `score` also takes uint8 images. Then 8-bit input (PIL images, uint8 tensors and arrays)
            reaches it as it is, so that its preprocessing can round as PIL does; otherwise it is divided by 255 first.
        half_dtype: half precision in which its networks are known to work.
        halves_on_cuda: whether `to` a CUDA device also converts float32 weights to `half_dtype`, unless it names a
            dtype. Loaders set it where no dtype was asked for; heads and dot products stay in float32.

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
    accepts_uint8: bool = False
    halves_on_cuda: bool = False
    _add_weighted: ClassVar[
        Callable[[Sequence[tuple[float, Reward | float]]], Reward]
    ]  # set by composition/composite.py

    @property
    def half_dtype(self) -> torch.dtype:
        """bfloat16, if a subclass says nothing else; a property, because torch is imported late."""
        return torch.bfloat16

    @abc.abstractmethod
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images that are already in one form.

        The score of an image must not depend on the other images of the batch.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], on the reward's device; a copy, which may be written to. Where
                `accepts_uint8` is set, also uint8.
            prompts: B strings; a copy, too.

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
        groups = group_by_size(images, keep_uint8=self.accepts_uint8)
        prompts = prompt_list(prompts, sum(len(group.indices) for group in groups))
        batches = [batch for group in groups for batch in group.split(self._checked_batch_size())]
        scores = torch.cat([self._score_batch(batch, [prompts[i] for i in batch.indices]) for batch in batches])
        # Batches are grouped by image size: put the scores back into the caller's order.
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

    def for_previews(self) -> Reward:
        """The reward that a sampler asks about predictions on the way; finished images are for this one itself.

        By default itself. A reward that can read an image more cheaply and almost as well answers with one that does
        and that shares its weights.
        """
        return self

    def at_noise(self, level: float) -> Reward:
        """The reward that a sampler asks about predictions at a noise level; by default itself, at every level.

        A reward that has learnt what blurred predictions foretell answers with a judge that shares its weights. At
        level 0, where images are finished, every reward answers with itself or with what scores bit for bit alike.

        Args:
            level: sigma / sqrt(alpha² + sigma²) of the sample `alpha * x0 + sigma * noise` from which the prediction
                was made, from 0, a finished image, to 1, pure noise.

        Raises:
            ValueError: for another level.
        """
        noise_level_in_range(level)
        return self

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of what a call asks: the reward's own, or those of its parts, each that of an adapter where it has any.

        They stand in the trace of a call, for each scoring step.
        """
        return (self.card.name,)

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Names of judges for noise bands whose scores are in no common unit with those of finished images."""
        return ()

    @property
    def shared_pass(self) -> Hashable | None:
        """Key of a forward pass that several rewards can share; None if this one shares none.

        Compositions score parts with equal keys by one `score_together`.
        """
        return None

    def score_together(self, others: Sequence[Reward], images: Images, prompts: str | Sequence[str]) -> list[Tensor]:
        """Score with this reward and others of equal `shared_pass`: what calling each gives, in that order."""
        return [reward(images, prompts) for reward in (self, *others)]

    @contextmanager
    def limited_to(self, batch_size: int) -> Iterator[None]:
        """Limit `score` to `batch_size` images at once inside a `with` block; a smaller `batch_size` attribute wins.

        A call still gets all images, so that a reward that compares them gives what it gives without the limit. Only
        the thread that is inside the block is limited, and `batch_size` is left alone.

        Raises:
            ValueError: when a batch size is not an integer of at least 1.
        """
        own, limits = self._checked_batch_size(), _BATCH_LIMITS.get()  # blocks nest: the tightest limit wins
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
        """Move the weights to a device, a floating dtype, or both, in place; return the reward itself.

        With `halves_on_cuda`, weights in float32 get `half_dtype` on a CUDA device unless a dtype is named.
        """
        if dtype is None and self.halves_on_cuda and is_cuda(device):
            dtype = self.half_dtype
        for module in self._held_modules():
            module.to(device=device, dtype=dtype)
        return self

    def modules_to_compile(self) -> list[nn.Module]:
        """Networks whose repeated blocks are worth compiling: by default, all that the reward holds.

        A subclass leaves out what runs once per prompt, such as the text tower of CLIP.
        """
        return list(self._held_modules())

    def __add__(self, other: Reward | float) -> Reward:
        return _weighted((1.0, self), (1.0, other))

    def __radd__(self, other: float) -> Reward:
        return _weighted((1.0, other), (1.0, self))

    def __sub__(self, other: Reward | float) -> Reward:
        return _weighted((1.0, self), (-1.0, other))

    def __rsub__(self, other: float) -> Reward:
        return _weighted((1.0, other), (-1.0, self))

    def __mul__(self, factor: float) -> Reward:
        return _weighted((factor, self)) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Reward:
        return _weighted((1.0 / divisor, self)) if isinstance(divisor, Real) else NotImplemented

    def __neg__(self) -> Reward:
        return _weighted((-1.0, self))

    def _held_modules(self) -> Iterator[nn.Module]:
        return (value for value in vars(self).values() if isinstance(value, torch.nn.Module))

    def _checked_batch_size(self) -> int | None:
        """Images that `score` sees at once here and now, the limits of `limited_to` included; None for all."""
        _check_batch_size(self.batch_size)
        limit = _BATCH_LIMITS.get().get(id(self))
        return self.batch_size if limit is None else min(self.batch_size or limit, limit)

    def _score_batch(self, batch: ImageGroup, prompts: list[str]) -> Tensor:
        # A copy even on the same device: a reward that normalises in place would change the caller's images, what other
        # rewards read, and what a steered call returns.
        with no_silent_tf32():
            scores = self.score(batch.images.to(self.device, copy=True), prompts)
        self._check_scores(scores, batch.indices, prompts)
        return scores.to(device=batch.images.device, dtype=torch.float32)

    def _check_scores(
        self, scores: Tensor, indices: tuple[int, ...], prompts: list[str], *, forbidden: Tensor | None = None
    ) -> None:
        """Check type, shape and values; `forbidden` (B,) says which may be `-inf`, by default those that are."""
        name = self.card.name
        if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
            got, remedy = type(scores).__name__, "torch.as_tensor(scores), of one float per image"
            if isinstance(scores, torch.Tensor):
                got, remedy = str(scores.dtype), "scores.float()"
            raise TypeError(f"Reward {name!r} must return a floating tensor, got {got}: return {remedy}.")
        if scores.shape != (len(indices),):
            hint = ": return scores.squeeze(1)" if scores.shape == (len(indices), 1) else ""
            raise ValueError(
                f"Reward {name!r} must return shape ({len(indices)},), one score per image, got "
                f"{tuple(scores.shape)}{hint}."
            )
        forbidden = scores.detach().isneginf() if forbidden is None else forbidden
        kept = scores.detach().to(torch.float32)  # turns -1e300 into -inf, which must not pass for a forbidden image
        wrong = kept.isnan() | kept.isposinf() | (kept.isneginf() & ~forbidden)
        if wrong.any():
            bad = int(wrong.nonzero()[0])
            raise NonFiniteScoreError(name, scores[bad].item(), indices[bad], prompts[bad])


def noise_level_in_range(level: float) -> float:
    """Check a noise level.

    Raises:
        TypeError: for what is no number.
        ValueError: for one outside of [0, 1].

    Example:
        >>> noise_level_in_range(0.5)
        0.5
    """
    if isinstance(level, bool) or not isinstance(level, Real):
        raise TypeError(f"A noise level is a number, got {level!r}.")
    if not 0 <= level <= 1:
        raise ValueError(f"A noise level is in [0, 1], got {level}.")
    return float(level)


def _check_batch_size(size: int | None) -> None:
    # True is an int: it must not mean a batch of one.
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"batch_size must be None or an integer of at least 1, got {size!r}.")


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _weighted(*terms: tuple[float, Any]) -> Reward:
    """A weighted sum; NotImplemented, which Python turns into its TypeError, when a term has another type."""
    if not all(isinstance(term, Real | Reward) for _, term in terms):
        return NotImplemented
    return Reward._add_weighted(terms)


class CallableReward(Reward):
    """Wrap a function `(images, prompts) -> scores` so that it gets a reward's checks, conversions and batches.

    Args:
        fn: takes images (B, 3, H, W) float32 in [0, 1], a copy that it may write to, and B prompts; returns (B,)
            floating scores, higher is better, `-inf` for an image that is forbidden. Where it is a `torch.nn.Module`,
            `to` moves it and the images follow; otherwise the images come on the device they were passed on.
        name: name in messages and traces; the function's own by default.
        batch_size: number of images that `fn` sees at once; None for all images of one size.

    Raises:
        TypeError: when `fn` is not a function of images and prompts.

    Example:
        >>> import torch
        >>> brightness = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "brightness")
        >>> brightness(torch.ones(2, 3, 4, 4), "a bright image")
        tensor([1., 1.])

    B: number of images, H: height, W: width.
    """

    def __init__(
        self, fn: Callable[[Tensor, list[str]], Tensor], name: str | None = None, *, batch_size: int | None = None
    ) -> None:
        if not callable(fn) or isinstance(fn, type):
            got = f"the class {fn.__name__}; pass an instance of it" if isinstance(fn, type) else type(fn).__name__
            raise TypeError(f"CallableReward needs a function (images, prompts) -> (B,) tensor, got {got}.")
        _check_parameters(fn)
        self.fn = fn
        self.batch_size = batch_size
        own_name = str(getattr(fn, "__name__", type(fn).__name__))
        self.card = RewardCard(name=name or own_name, summary="a function given by the caller")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Call the function."""
        return self.fn(images, prompts)


def _check_parameters(fn: Callable[..., Any]) -> None:
    """Raise for a function that does not take images and prompts; one without a signature passes."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, torch.nn.Module) else fn)
    except (TypeError, ValueError):
        return  # builtins and some extension types have no signature
    try:
        signature.bind("images", "prompts")
    except TypeError as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"A reward is called as fn(images, prompts), and {name}{signature} cannot be: {error}. "
            "Write a function with these two parameters; it may ignore the prompts."
        ) from error
