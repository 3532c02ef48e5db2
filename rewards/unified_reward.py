"""UnifiedReward 2.0: marks from 1 to 5 for alignment, coherence and style, as expectations instead of a text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.registry import RewardEntry

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel
    from fk_reward.rewards.continued_rows import ContinuedRows

MARKS = ("alignment", "coherence", "style")
"""What is marked, in the order of the answer."""

ASPECTS = (*MARKS, "mean")
"""Scores: one of the marks, or the mean of all."""

PLACE = "inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py"
"""File of github.com/CodeGoat24/UnifiedReward with the question, in the variable `problem`."""

_DIGITS = tuple("0123456789")
_WHOLE = tuple("12345")
_NUM_KEPT = 2  # whole marks whose decimals are asked for; the others have little probability

_CARD = RewardCard(
    name="unified-reward",
    summary="UnifiedReward 2.0: mean of the marks, 1 to 5, for alignment, coherence and style, each an expectation",
    typical_range=(1.0, 5.0),
    differentiable=True,
    looks_at="the whole image",
    licence="MIT; Apache-2.0 (Qwen3-VL-2B)",
    source=f"Wang et al. 2025, arXiv 2503.05236; {PLACE} of github.com/CodeGoat24/UnifiedReward",
    weights="CodeGoat24/UnifiedReward-2.0-qwen3vl-2b",
    memory="4.3 GB in bfloat16",
)


class UnifiedReward(Reward):
    """Marks at their places in the answer that the model was trained to give: "Alignment Score (1-5): 2.69...".

    The answer is made to begin with the words before a mark. The mark is the expectation over its whole part, 1 to 5,
    and over its first decimal given each of the two likeliest whole parts; the model's own sixteen further digits are
    left out. Where another mark follows, the likeliest digits are written before it. So no text is generated, and the
    score is continuous and has a gradient. Image and question are read once, for all marks, and their keys and values
    are kept meanwhile; eight short passes behind them read two to some twenty tokens each.

    Args:
        model: model and processor, as `load_answer_model` gives them; decoder-only.
        question: the authors' question, with "{prompt}" where the prompt goes.
        aspect: a name of `ASPECTS`.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: for another aspect, a question without "{prompt}", or a model that spells digits otherwise.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> reward = load_reward("unified-reward", words="UnifiedReward", aspect="alignment")  # doctest: +SKIP
    """

    accepts_uint8 = True

    def __init__(
        self,
        model: AnswerModel,
        *,
        question: str,
        aspect: str = "mean",
        batch_size: int | None = 8,
        card: RewardCard = _CARD,
    ) -> None:
        if aspect not in ASPECTS:
            raise ValueError(f"aspect must be one of {ASPECTS}, got {aspect!r}.")
        if "{prompt}" not in question:
            raise ValueError(f"The question must have {{prompt}} where the prompt goes, got {question[-80:]!r}.")
        self.whole = model.answer_tokens(_WHOLE, question=question, opening=_label("alignment"))
        self.tenths = [_decimal_token(model, digit) for digit in _DIGITS]
        self._words = [_Words.of(model, place) for place in range(len(MARKS))]
        self.model = model
        self.question = question
        self.aspect = aspect
        self.batch_size = batch_size
        self.card = dataclasses.replace(card, differentiable=model.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The mark, or the mean of all."""
        found = self._marks(images, prompts, MARKS if self.aspect == "mean" else MARKS[: MARKS.index(self.aspect) + 1])
        return torch.stack(found).mean(dim=0) if self.aspect == "mean" else found[-1]

    def marks(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """All marks.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.
            prompts: B strings.

        Returns:
            Name -> (B,) float32 in [1, 5].

        B: number of images, H, W: height and width.
        """
        return dict(zip(MARKS, self._marks(images, prompts, MARKS), strict=True))

    def _marks(self, images: Tensor, prompts: list[str], names: Sequence[str]) -> list[Tensor]:
        self.model.refuse_control_tokens(list(dict.fromkeys(prompts)))
        # Not `str.format`: a prompt may contain other braces.
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        rows, found = self.model.read(images, questions, opening=_label(names[0])), []
        for place in range(len(names)):
            mark, digits = self._mark(rows, self._words[place])
            found.append(mark)
            if place + 1 < len(names):
                rows.write(self._words[place].ending.to(digits.device)[digits[:, 0], digits[:, 1]])
        return found

    def _mark(self, rows: ContinuedRows, words: _Words) -> tuple[Tensor, Tensor]:
        """Expectations (B,) float32, and the places (B, 2) of the likeliest digits of each."""
        share, kept = rows.logits[:, self.whole].softmax(dim=-1).topk(_NUM_KEPT, dim=1)
        points = words.point.to(kept.device)
        logits = [rows.peek(points[place])[:, self.tenths] for place in kept.unbind(dim=1)]
        decimals = torch.stack(logits, dim=1).softmax(dim=-1)
        tenths = decimals @ torch.arange(10.0, device=decimals.device) / 10
        value = (1 + kept + tenths).clamp(max=5.0)
        likeliest = torch.stack([kept[:, 0], decimals[:, 0].argmax(dim=-1)], dim=1)
        return (share * value).sum(dim=1) / share.sum(dim=1), likeliest


class _Words(NamedTuple):
    """Ids of what is written behind the label of a mark, whatever the digits: looked up without asking the device.

    Attributes:
        point: (5, n) a whole part and the decimal point.
        ending: (5, 10, m) both digits of a mark, and the label of the next one; none behind the last.
    """

    point: Tensor
    ending: Tensor

    @classmethod
    def of(cls, model: AnswerModel, place: int) -> _Words:
        opening = "3.0\n".join(map(_label, MARKS[: place + 1]))
        next_label = "".join(f"\n{_label(name)}" for name in MARKS[place + 1 : place + 2])
        point = _table(model, [f"{whole}." for whole in _WHOLE], opening)
        endings = [f"{whole}.{digit}{next_label}" for whole in _WHOLE for digit in _DIGITS]
        return cls(point, _table(model, endings, opening).unflatten(0, (len(_WHOLE), len(_DIGITS))))


def _table(model: AnswerModel, texts: Sequence[str], opening: str) -> Tensor:
    """(N, n) ids of N texts behind an opening."""
    ids = model.joined_ids(texts, opening=opening)
    if len(set(map(len, ids))) > 1:
        raise ValueError(f"UnifiedReward needs a tokenizer with a token for each digit; this one spells {texts} {ids}.")
    return torch.tensor(ids, device="cpu")  # also where a reward is made without numbers


def _decimal_token(model: AnswerModel, digit: str) -> int:
    """Id of a digit behind a decimal point, where no space stands before it."""
    before, after = model.token_ids("2."), model.token_ids(f"2.{digit}")
    if after[:-1] != before:
        raise ValueError(
            f"UnifiedReward needs a tokenizer with a token for each digit; this one spells '2.{digit}' {after}."
        )
    return after[-1]


def _label(name: str) -> str:
    return f"{name.capitalize()} Score (1-5): "


def load_unified_reward(  # noqa: PLR0913 (options of one reward)
    *,
    words: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] = _CARD.weights,
    aspect: str = "mean",
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
    batch_size: int | None = 8,
) -> UnifiedReward:
    """Load UnifiedReward 2.0: what `load_reward("unified-reward", ...)` calls.

    Args:
        words: the authors' `point_score_ACS_image_generation.py`, or a folder with their repository; it is parsed,
            never run.
        model: hub id or folder; all sizes of UnifiedReward 2.0 on Qwen3-VL and Qwen2.5-VL.
        aspect: "alignment", "coherence", "style" or "mean".
        torch_dtype: floating dtype of the weights.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        batch_size: number of images that go through the model at once; None for all of one size.

    Raises:
        FileNotFoundError: when there is no file of words.
        OSError: when files of the model are missing.
        ValueError: without `words`, when the file lacks the question, and as `UnifiedReward` and `load_answer_model`.
    """
    from fk_reward.rewards.answer_model import load_answer_model
    from fk_reward.rewards.vlm_judge.author_templates import file_in, python_strings
    from fk_reward.rewards.vqascore import card_of

    if words is None:
        raise ValueError(
            f"The question is its authors' and not part of this package: fetch {PLACE} of "
            "github.com/CodeGoat24/UnifiedReward, and give words=<file or folder>."
        )
    question = python_strings(file_in(words, PLACE), ["problem"])["problem"]
    answer_model = load_answer_model(
        model,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        revision=revision,
    )
    return UnifiedReward(
        answer_model, question=question, aspect=aspect, batch_size=batch_size, card=card_of(_CARD, model)
    )


UNIFIED_REWARD = RewardEntry(_CARD, load_unified_reward)
