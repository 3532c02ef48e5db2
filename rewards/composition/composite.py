"""A composition of rewards as a reward: each part is scored once, parts on one backbone in one pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fk_reward.rewards.base import Reward
from fk_reward.rewards.composition.composite_card import composite_card
from fk_reward.rewards.composition.expression import Expression
from fk_reward.rewards.inputs import Images, copied, in_order, prompt_list

if TYPE_CHECKING:
    from typing_extensions import Self


class CompositeReward(Reward):
    """A weighted sum, minimum, gate, ... of rewards; made by `load_reward("0.7*a + 0.3*b")` or `0.7 * a + 0.3 * b`.

    Parts see all images of a call, so that a general preference compares the same images as it does alone. A part that
    forbids an image, by `-inf`, forbids it for a sum, too, unless its weight is 0.

    Args:
        expression: what is computed from the scores of the parts.
        parts: a reward for each name in the expression.

    Attributes:
        expression: as given; `str` of it is the name on the card.
        parts: as given, in the order of the expression.

    Raises:
        ValueError: when no part is named, or parts of which lower is better mix with others.

    Example:
        >>> from fk_reward.rewards import CallableReward
        >>> red, blue = (CallableReward(lambda x, _, c=c: x[:, c].mean(dim=(1, 2)), f"channel-{c}") for c in (0, 2))
        >>> reward = 0.75 * red - blue
        >>> reward.card.name
        '0.75*channel-0 - channel-2'
        >>> reward(torch.ones(2, 3, 4, 4), "a picture")
        tensor([-0.2500, -0.2500])
    """

    def __init__(self, expression: Expression, parts: Mapping[str, Reward]) -> None:
        self.expression = expression
        self.parts = {name: parts[name] for name in expression.names}
        self._cards = {name: part.card for name, part in self.parts.items()}
        self.card = composite_card(expression, self._cards)

    @property
    def batch_size(self) -> int | None:  # type: ignore[override]
        """Number of images that a part sees at once, None where parts differ; setting it sets that of all parts."""
        sizes = {part.batch_size for part in self.parts.values()}
        return sizes.pop() if len(sizes) == 1 else None

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        for part in self.parts.values():
            part.batch_size = value

    @contextmanager
    def limited_to(self, batch_size: int) -> Iterator[None]:
        """Limit each part, see `Reward.limited_to`."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.limited_to(batch_size))
            yield

    @property
    def compares_images(self) -> bool:
        """Whether one of the parts does."""
        return any(part.compares_images for part in self.parts.values())

    @property
    def device(self) -> torch.device | None:
        """Device of the first part that has weights; None if none has."""
        return next((part.device for part in self.parts.values() if part.device is not None), None)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all parts, in place; return the reward itself."""
        for part in self.parts.values():
            part.to(device, dtype)
        return self

    def modules_to_compile(self) -> list[nn.Module]:
        """Those of all parts."""
        return [module for part in self.parts.values() for module in part.modules_to_compile()]

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images as `Reward.__call__` does."""
        return self.score_with_parts(images, prompts)[0]

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The same as a call; shapes as in `Reward.score`."""
        return self(images, prompts)

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Score images, and tell what each part gave.

        Args:
            images: as for `Reward.__call__`.
            prompts: B strings, or one string for all images.

        Returns:
            (B,) float32, and for each part (B,) float32.

        Raises:
            NonFiniteScoreError: for a part's score or a combination that is NaN or `+inf` (a negative weight makes it
                of `-inf`), or that is too large for float32.
            ValueError: when a part was switched to something else since it was composed.
        """
        pictures = in_order(images)
        texts = prompt_list(prompts, len(pictures))
        self._check_unchanged()
        parts = self._score_parts(pictures, texts)
        scores = self.expression.evaluate(parts)
        forbidden = torch.stack([part.isneginf() for part in parts.values()]).any(0)
        self._check_scores(scores, tuple(range(len(texts))), texts, forbidden=forbidden)
        return scores, parts

    def _score_parts(self, images: Tensor | list[Tensor], prompts: list[str]) -> dict[str, Tensor]:
        """Score each part once, those with equal `shared_pass` together."""
        passes: dict[Hashable, list[str]] = {}
        for name, part in self.parts.items():
            passes.setdefault(name if part.shared_pass is None else (part.shared_pass,), []).append(name)
        scores: dict[str, Tensor] = {}
        for names in passes.values():
            first, *others = (self.parts[name] for name in names)
            own = copied(images)  # a part with a `__call__` of its own may write to what it gets
            together = first.score_together(others, own, prompts) if others else [first(own, prompts)]
            scores.update(zip(names, together, strict=True))
        return {name: scores[name] for name in self.parts}

    def _check_unchanged(self) -> None:
        for name, part in self.parts.items():
            if part.card != self._cards[name]:
                raise ValueError(
                    f"{name} has become {part.card.name} since {self.card.name} was composed; load a reward for each."
                )
