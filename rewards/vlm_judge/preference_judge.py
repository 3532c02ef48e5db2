"""A vision-language model that compares two images, as a reward: the share of comparisons that an image wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fk_reward.rewards.inputs import Images, in_order, prompt_list, to_pil
from fk_reward.rewards.vlm_judge.engine import JudgeEngine
from fk_reward.rewards.vlm_judge.listener import chances_of_first
from fk_reward.rewards.vlm_judge.marks import WeighingEngine
from fk_reward.rewards.vlm_judge.templates import JudgeTemplate
from fk_reward.rewards.vlm_judge.vlm_judge import Question, Verdict, VLMJudge


def ring_pairs(num_members: int, num_rounds: int | None = None) -> list[tuple[int, int]]:
    """Pair each member of a ring with the next `num_rounds` ones, so that all meet equally many others.

    All K(K-1)/2 pairs need floor(K/2) rounds; m rounds cost K*m pairs. Each member comes first in as many of its pairs
    as second, up to one.

    Args:
        num_members: size K of the group.
        num_rounds: at least 1; None, or more than there are, for all pairs.

    Raises:
        ValueError: when `num_rounds` is less than 1.

    Example:
        >>> ring_pairs(4)
        [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)]
        >>> ring_pairs(4, num_rounds=1)
        [(0, 1), (1, 2), (2, 3), (3, 0)]
        >>> ring_pairs(2), ring_pairs(1)
        ([(0, 1)], [])
    """
    if num_rounds is not None and num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, or None, got {num_rounds}.")
    most = num_members // 2
    rounds = range(1, (most if num_rounds is None else min(num_rounds, most)) + 1)
    return [
        (i, (i + step) % num_members)
        for step in rounds
        # Half way round an even ring, members i and i + step meet from both sides: take each such pair once.
        for i in range(step if 2 * step == num_members else num_members)
    ]


def win_rates(pairs: Sequence[tuple[int, int]], outcomes: Sequence[float], *, num_members: int) -> list[float]:
    """Share of its comparisons that each member wins; 0.5 for a member that was not compared.

    Args:
        pairs: who was compared with whom.
        outcomes: for each pair how much the first won, in [0, 1].
        num_members: size of the group.

    Raises:
        ValueError: when the counts differ.

    Example:
        >>> win_rates([(0, 1), (1, 2), (2, 0)], [1.0, 0.5, 0.0], num_members=4)
        [1.0, 0.25, 0.25, 0.5]
    """
    won: list[list[float]] = [[] for _ in range(num_members)]
    for (first, second), outcome in zip(pairs, outcomes, strict=True):
        won[first].append(outcome)
        won[second].append(1 - outcome)
    return [sum(shares) / len(shares) if shares else 0.5 for shares in won]


class PreferenceJudge(VLMJudge):
    """Compares the images of each prompt with each other; the reward is the win rate, in [0, 1].

    The reward is relative, as that of a general preference: it changes with the other images of the same prompt in the
    call. The mean over a prompt's images is 0.5, and so is the reward of an image that is alone.

    K images of a prompt make K(K-1)/2 comparisons, each asked in both orders: a judge that prefers a position rather
    than an image contradicts itself and gives 0.5 to both. `num_rounds=m` compares each image only with its m next
    ones on a ring, K*m comparisons.

    With a `listener`, a second model reads each chain of thought up to its answer, and gives the answer's probability
    (Gambashidze et al. 2025, arXiv 2506.22832, take it as the calibrated confidence of a reasoner): a win of
    confidence c counts as 0.5 + c / 2, a loss as 0.5 - c / 2, so that a chain that does not convince says nothing.

    Args:
        engine: as for `VLMJudge`.
        template: one that is pairwise.
        listener: an engine with `weigh` that reads the reasons; None for none. Its template must end in "<answer>".
        both_orders: ask each comparison in both orders; False for half the cost, each image as often first as second.
        num_rounds: comparisons of K images are K * num_rounds; None for all.
        **options: `cache`, `on_unparsable`, `num_retries`, `max_new_tokens`, `batch_size` and `card` of `VLMJudge`; the
            batch size counts questions, each with two images.

    Attributes:
        num_heard: answers that the listener has read.
        num_contradicted: those of them to which it gave less than one half.

    Raises:
        TypeError: for another option, or a listener without `weigh`.
        ValueError: as `VLMJudge`, for a template about one image, and for `num_rounds` below 1.

    Example:
        >>> class First:
        ...     name = "always prefers what it sees first"
        ...
        ...     def generate(self, images, messages, *, sampling):
        ...         return ["<answer>1</answer>"] * len(images)
        >>> PreferenceJudge(First())(torch.rand(3, 3, 8, 8), "a red circle")
        tensor([0.5000, 0.5000, 0.5000])
    """

    pairwise = True

    def __init__(
        self,
        engine: JudgeEngine,
        template: str | JudgeTemplate = "preference",
        *,
        listener: WeighingEngine | None = None,
        both_orders: bool = True,
        num_rounds: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(engine, template, **options)
        ring_pairs(2, num_rounds)  # raises now rather than at the first call
        if listener is not None and not isinstance(listener, WeighingEngine):
            raise TypeError(f"The listener {listener!r} gives no probabilities: it needs a method `weigh`.")
        self.listener = listener
        self.num_heard = self.num_contradicted = 0
        self.both_orders = both_orders
        self.num_rounds = num_rounds

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Win rate of each image among those of its prompt in the call.

        Args:
            images: B images, as for `Reward.__call__`.
            prompts: B strings, or one string for all images; images of equal prompts are compared.

        Returns:
            (B,) float32 in [0, 1], on the images' device.

        Raises:
            JudgeAnswerError: for an answer that gives no preference; it quotes it and names images and prompt.
            JudgeEndpointError: when an endpoint gives no answer.
        """
        images = in_order(images)
        texts = prompt_list(prompts, len(images))
        pairs = self._pairs(texts)
        outcomes = self._compare(images, pairs, [texts[first] for first, _ in pairs])
        scores = torch.tensor(win_rates(pairs, outcomes, num_members=len(texts)), device=images[0].device)
        self._check_scores(scores, tuple(range(len(texts))), texts)
        return scores

    @property
    def compares_images(self) -> bool:
        """True."""
        return True

    @property
    def contradiction_rate(self) -> float | None:
        """Share of the answers that the listener has read to which it gave less than one half; None before any."""
        return self.num_contradicted / self.num_heard if self.num_heard else None

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Do the same as a call."""
        return self(images, prompts)

    def preference(self, images_a: Images, images_b: Images, prompts: str | Sequence[str]) -> Tensor:
        """How much image a is preferred to image b for its prompt.

        Args:
            images_a: B images, as for `Reward.__call__`.
            images_b: B images.
            prompts: B strings, or one string for all pairs.

        Returns:
            (B,) float32: 1 for a, 0 for b, 0.5 where the two orders contradict each other.

        Raises:
            JudgeAnswerError: as a call; images b count on from images a.
            ValueError: when the numbers of images differ.
        """
        first, second = list(in_order(images_a)), list(in_order(images_b))
        if len(first) != len(second):
            raise ValueError(f"Expected as many images b as images a, got {len(first)} and {len(second)}.")
        pairs = [(i, i + len(first)) for i in range(len(first))]
        outcomes = self._compare(first + second, pairs, prompt_list(prompts, len(first)))
        return torch.tensor(outcomes, device=first[0].device)

    def verdicts(self, images: Images, prompts: str | Sequence[str]) -> list[Verdict]:
        """Not for comparisons, whose answers belong to two images each; the cache holds them.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A PreferenceJudge has no verdict on one image; with cache=... its answers can be read on disk."
        )

    def _pairs(self, prompts: list[str]) -> list[tuple[int, int]]:
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(index)
        return [
            (members[i], members[j])
            for members in groups.values()
            for i, j in ring_pairs(len(members), self.num_rounds)
        ]

    def _compare(
        self, images: Tensor | Sequence[Tensor], pairs: Sequence[tuple[int, int]], prompts: Sequence[str]
    ) -> list[float]:
        """For each pair how much the first image wins."""
        pil_images = to_pil(images)
        orders = (1, -1) if self.both_orders else (1,)
        asked = [(pair[::order], prompt) for pair, prompt in zip(pairs, prompts, strict=True) for order in orders]
        questions = [Question((pil_images[i], pil_images[j]), prompt, indices=(i, j)) for (i, j), prompt in asked]
        verdicts = self._ask(questions)
        wins = [verdict.score for verdict in verdicts] if self.listener is None else self._heard(questions, verdicts)
        if not self.both_orders:
            return wins
        return [(straight + 1 - turned) / 2 for straight, turned in zip(wins[::2], wins[1::2], strict=True)]

    def _heard(self, questions: Sequence[Question], verdicts: Sequence[Verdict]) -> list[float]:
        """How much the first image wins, by the listener's confidence in each answer."""
        chances = chances_of_first(
            self.listener,  # type: ignore[arg-type]  # only called where there is one
            self.template,
            [question.images for question in questions],
            prompts=[question.prompt for question in questions],
            answers=[verdict.answer for verdict in verdicts],
            batch_size=self._checked_batch_size() or len(questions),
        )
        wins = []
        for verdict, first in zip(verdicts, chances, strict=True):
            confidence = first if verdict.score == 1 else 1 - first
            self.num_heard += 1
            self.num_contradicted += confidence < 0.5
            wins.append(0.5 + (verdict.score - 0.5) * confidence)
        return wins
