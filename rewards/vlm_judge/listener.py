"""A second model that reads a reasoner's chain of thought, and the reward of training the reasoner with it.

Gambashidze et al. 2025, arXiv 2506.22832: the probability that a frozen listener gives to an answer, after the reasons
for it, is the calibrated confidence of the reasoner; where the listener would answer otherwise, the two contradict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from fk_reward.rewards.vlm_judge.marks import WeighingEngine
from fk_reward.rewards.vlm_judge.templates import JudgeTemplate, find_template
from fk_reward.value_checks import real_number, whole_number

_ANSWER = "<answer>"
Pair = Sequence[Image.Image]
"""Two images, in the order in which the reasoner saw them."""


def reasons(answer: str) -> str:
    """An answer up to the place of the choice.

    Raises:
        ValueError: where it has none, so that a listener could not weigh one.

    Example:
        >>> reasons("<think>one cat only</think><answer>2</answer>")
        '<think>one cat only</think><answer>'
    """
    place = answer.lower().rfind(_ANSWER)
    if place < 0:
        raise ValueError(f"A listener needs answers in the form {_ANSWER}1</answer>, got {answer!r}.")
    return answer[: place + len(_ANSWER)]


def chances_of_first(
    listener: WeighingEngine,
    template: JudgeTemplate,
    pairs: Sequence[Pair],
    *,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int,
) -> list[float]:
    """For each answer the probability that the listener, with its reasons, prefers the first image; of the two choices.

    Args:
        listener: the second model.
        template: the question that was asked.
        pairs: the images.
        prompts: one for each.
        answers: of the reasoner, with "<answer>".
        batch_size: answers that the listener reads at once.

    Raises:
        ValueError: for an answer without "<answer>".
    """
    chances: list[float] = []
    for start in range(0, len(answers), batch_size):
        part = slice(start, start + batch_size)
        found = listener.weigh(
            [tuple(pair) for pair in pairs[part]],
            [template.messages(prompt) for prompt in prompts[part]],
            openings=[reasons(answer) for answer in answers[part]],
            candidates=["1", "2"],
            ending="</answer>",
        )
        chances += [1 / (1 + math.exp(second - first)) for first, second in found]
    return chances


class ListenerReward:
    """The reward of a reasoner's completions, as TRL's `GRPOTrainer` calls it: `(completions, **columns) -> [float]`.

    A completion earns `format_weight` where its choice can be read, `accuracy_weight` where it is the image that people
    prefer, and `listener_weight` times the probability that the listener, with the completion's reasons, gives to that
    image. One that cannot be read earns nothing, and the listener is not asked.

    The last part is dense where the others are 0 or 1, and pays reasons that convince a second model of the right
    answer, whatever the reasoner answers.

    Args:
        listener: a frozen engine with `weigh`, such as a `TransformersEngine`.
        template: the comparison that the prompts of the training ask; it must answer in "<answer>".
        format_weight: see above.
        accuracy_weight: see above.
        listener_weight: see above.
        images: name of the column with two PIL images a row.
        prompt: name of the column with the prompt of the images.
        preferred: name of the column with 1 or 2, the image that people prefer.
        batch_size: completions that the listener reads at once.

    Attributes:
        num_heard: completions that the listener has read.
        num_contradicted: those to whose answer it gave less than one half.

    Raises:
        TypeError: for a listener without `weigh`, or a weight that is no number.
        ValueError: for a template about one image, or a batch size below 1.

    Example:
        >>> class Sure:
        ...     name = "prefers the first, whatever it reads"
        ...
        ...     def weigh(self, images, messages, *, openings, candidates, ending):
        ...         return [[math.log(0.75), math.log(0.25)] for _ in openings]
        >>> reward = ListenerReward(Sure())
        >>> pair = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))]
        >>> columns = {"images": [pair] * 3, "caption": ["a cat"] * 3, "preferred": [1, 1, 1]}
        >>> texts = ["<answer>1</answer>", "<answer>2</answer>", "the first"]
        >>> [round(score, 6) for score in reward(texts, **columns)]
        [2.0, 1.0, 0.0]
    """

    __name__ = "listener_reward"  # what TRL calls it in its logs

    def __init__(  # noqa: PLR0913 (options of one reward)
        self,
        listener: WeighingEngine,
        template: str | JudgeTemplate = "preference",
        *,
        format_weight: float = 0.25,
        accuracy_weight: float = 1.0,
        listener_weight: float = 1.0,
        images: str = "images",
        prompt: str = "caption",
        preferred: str = "preferred",
        batch_size: int = 8,
    ) -> None:
        if not isinstance(listener, WeighingEngine):
            raise TypeError(f"The listener {listener!r} gives no probabilities: it needs a method `weigh`.")
        self.listener, self.template = listener, find_template(template)
        if not self.template.pairwise:
            raise ValueError(f"Template {self.template.name!r} does not compare two images.")
        weights = {"format_weight": format_weight, "accuracy_weight": accuracy_weight}
        weights["listener_weight"] = listener_weight
        self.weights = {name: real_number(name, value) for name, value in weights.items()}
        self.columns = (images, prompt, preferred)
        self.batch_size = whole_number("batch_size", batch_size, minimum=1)
        self.num_heard = self.num_contradicted = 0

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Rewards of completions.

        Args:
            completions: texts, or conversations whose last turn is the completion.
            log_metric: of the trainer; gets the share of contradictions.
            **columns: of the data set, one value for each completion; others than the three are ignored.

        Raises:
            KeyError: when a column is missing.
            ValueError: when a value of `preferred` is not 1 or 2.
        """
        pairs, prompts, preferred = (self._column(name, columns) for name in self.columns)
        texts = [completion_text(completion) for completion in completions]
        choices = [self._choice(text) for text in texts]
        read = [place for place, choice in enumerate(choices) if choice is not None]
        chances = chances_of_first(
            self.listener,
            self.template,
            [pairs[i] for i in read],
            prompts=[prompts[i] for i in read],
            answers=[texts[i] for i in read],
            batch_size=self.batch_size,
        )
        rewards = [0.0] * len(texts)
        contradicted = 0
        for place, first in zip(read, chances, strict=True):
            right = _checked(preferred[place])
            rewards[place] = self._reward(choices[place] == right, first if right == 1 else 1 - first)
            contradicted += (first if choices[place] == 1 else 1 - first) < 0.5
        self.num_heard, self.num_contradicted = self.num_heard + len(read), self.num_contradicted + contradicted
        if log_metric is not None and read:
            log_metric("listener_contradicted", contradicted / len(read))
        return rewards

    def _reward(self, is_right: bool, confidence: float) -> float:
        weights = self.weights
        accuracy = weights["accuracy_weight"] * is_right
        return weights["format_weight"] + accuracy + weights["listener_weight"] * confidence

    def _choice(self, text: str) -> int | None:
        """1 or 2; None where the text has no readable choice."""
        try:
            return 1 if self.template.read(text) > 0.5 else 2
        except ValueError:
            return None

    def _column(self, name: str, columns: dict[str, Any]) -> Sequence[Any]:
        if name not in columns:
            raise KeyError(f"The data set has no column {name!r}; it has {', '.join(sorted(columns))}.")
        return columns[name]


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the last turn of a conversation.

    Raises:
        TypeError: for another form.

    Example:
        >>> completion_text([{"role": "assistant", "content": "one"}]), completion_text("two")
        ('one', 'two')
    """
    content: Any = completion if isinstance(completion, str) else completion[-1]["content"]
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    raise TypeError(f"A completion is a text or a conversation, got {completion!r}.")


def _checked(preferred: Any) -> int:
    if preferred not in (1, 2):
        raise ValueError(f"The preferred image must be 1 or 2, got {preferred!r}.")
    return int(preferred)
