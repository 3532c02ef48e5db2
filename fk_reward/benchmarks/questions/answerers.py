"""Who answers questions about images: the first token of a local model, or the words of a judge at an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from fk_reward.benchmarks.store import weights_digest
from fk_reward.rewards.inputs import ImageGroup, group_by_size
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, JudgeEngine, Sampling
from fk_reward.rewards.vlm_judge.enough import Enough, close_match
from fk_reward.text import shortened

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel

DEFAULT_JUDGE = "Qwen/Qwen3-VL-8B-Instruct"
"""GenEval 2's judge."""

_SAMPLING = Sampling(
    max_new_tokens=16,  # one word, and what some models put around it
    enough=Enough(close=partial(close_match, pattern=re.compile(r"\w+(?=\W)"))),  # the first word, once it is complete
)


class Asked(NamedTuple):
    """A question about an image.

    Attributes:
        place: of the image among those that are given.
        question: the whole text.
        spellings: of the right answer.
    """

    place: int
    question: str
    spellings: tuple[str, ...]


class Answered(NamedTuple):
    """What was answered.

    Attributes:
        probability: of the right answer: of all its spellings together; 0 or 1 where only words are known.
        right: whether the answer that was given, the most likely word, is one of the spellings.
        said: that word.
    """

    probability: float
    right: bool
    said: str


class Answerer(Protocol):
    """Answers questions about images.

    Attributes:
        identity: what its answers depend on, as JSON.
    """

    identity: dict[str, Any]

    def answer(self, images: Sequence[Image.Image], asked: Sequence[Asked], /) -> list[Answered]:
        """Answer questions, each about one of the images."""


class ModelAnswerer:
    """A local vision-language model: the probabilities of the first token of its answer.

    As GenEval 2's `evaluation.py` computes it (Kamath et al. 2025, arXiv 2512.16853): the answer's probability is the
    sum over its spellings of the probability of the token that the spelling begins with. Two spellings that begin with
    one token count it twice, there and here; with Qwen's tokenizer " 4" begins with a token that is a space.

    Args:
        model: as `fk_reward.rewards.answer_model.load_answer_model` gives it.
        name: hub id or folder.
        batch_size: questions in one pass; those of a pass may be about different images of one size.

    Example:
        >>> from fk_reward.rewards.answer_model import load_answer_model
        >>> judge = ModelAnswerer(load_answer_model(DEFAULT_JUDGE), name=DEFAULT_JUDGE)  # doctest: +SKIP
        >>> judge.answer([image], [Asked(0, "Is it red? Answer in one word.", ("Yes", "yes"))])  # doctest: +SKIP
    """

    def __init__(self, model: AnswerModel, *, name: str, batch_size: int = 16) -> None:
        self.model, self.batch_size = model, batch_size
        self.identity: dict[str, Any] = {"model": name, "weights": weights_digest([model]), "dtype": str(model.dtype)}

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Answered]:
        """Answer questions, those about images of one size in batches.

        Raises:
            ValueError: a question that holds a control token of the model, or is longer than the model reads.
        """
        self.model.refuse_control_tokens(list(dict.fromkeys(line.question for line in asked)))
        found: dict[int, Answered] = {}
        for group in group_by_size(list(images), keep_uint8=True):
            rows = [row for row, line in enumerate(asked) if line.place in group.indices]
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                found |= zip(batch, self._pass(group, [asked[row] for row in batch]), strict=True)
        return [found[row] for row in range(len(asked))]

    def _pass(self, group: ImageGroup, asked: Sequence[Asked]) -> list[Answered]:
        places = [group.indices.index(line.place) for line in asked]
        pixels = group.images[places].to(self.model.device)
        probabilities = self.model(pixels, [line.question for line in asked]).softmax(dim=-1)
        return [self._read(row, line) for row, line in zip(probabilities.double().cpu(), asked, strict=True)]

    def _read(self, probabilities: Tensor, asked: Asked) -> Answered:
        tokens = [self.model.token_ids(spelling)[0] for spelling in asked.spellings]
        best = int(probabilities.argmax())
        said = self.model.processor.tokenizer.decode([best]).strip()
        return Answered(float(probabilities[tokens].sum()), best in tokens, said)


class EngineAnswerer:
    """A judge that answers in words: an endpoint, or any engine of the VLM judges.

    Words have no probabilities: what is reported is whether the first word is a spelling of the answer, as 1 or 0.

    Args:
        engine: of `fk_reward.rewards.vlm_judge`.
        batch_size: questions that it gets at once.

    Example:
        >>> class Sure:
        ...     name = "sure"
        ...
        ...     def generate(self, images, messages, *, sampling):
        ...         return ["Yes, there is."] * len(images)
        >>> EngineAnswerer(Sure()).answer([Image.new("RGB", (8, 8))], [Asked(0, "Is it black?", ("Yes", "yes"))])
        [Answered(probability=1.0, right=True, said='Yes')]
    """

    def __init__(self, engine: JudgeEngine, *, batch_size: int = 16) -> None:
        self.engine, self.batch_size = engine, batch_size
        self.identity: dict[str, Any] = {"model": engine.name}

    def answer(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Answered]:
        """Answer questions.

        Raises:
            ValueError: an answer that was cut off, filtered or refused, or has no word.
            JudgeEndpointError: the endpoint did not answer.
        """
        batches = [asked[start : start + self.batch_size] for start in range(0, len(asked), self.batch_size)]
        return [answer for batch in batches for answer in self._batch(images, batch)]

    def _batch(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Answered]:
        messages = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": line.question}]}]
            for line in asked
        ]
        shown = [[images[line.place]] for line in asked]
        texts = self.engine.generate(shown, messages, sampling=_SAMPLING)
        return [self._read(text, line) for text, line in zip(texts, asked, strict=True)]

    def _read(self, text: str, asked: Asked) -> Answered:
        word = re.search(r"\w+", text)
        flaw = text.flaw if isinstance(text, FlawedAnswer) else "it has no word" if word is None else None
        if flaw is not None or word is None:
            raise ValueError(
                f"{self.engine.name} was asked {asked.question!r}, and its answer cannot be used: {flaw}. It was "
                f"{shortened(repr(text), 200)}. Use a judge that answers in a word; what is judged so far is kept."
            )
        right = word[0].lower() in {spelling.strip().lower() for spelling in asked.spellings}
        return Answered(float(right), right, word[0])
