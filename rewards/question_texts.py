"""Questions about an image as a chat template writes them; the template runs once, not once a question."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.prompt_limits import refuse_control_tokens

if TYPE_CHECKING:
    from typing import Any

    from transformers import ProcessorMixin

# Blanks, capitals, line breaks and what HTML or JSON would escape: a template that changes any of it is run each time.
_PROBE = " \n\tQ7x Ünï <b>&amp;'\"\\ {{ q }} {% q %} [q] \n "


def question_text(
    processor: ProcessorMixin, question: str, *, system: str | None = None, image_first: bool = True
) -> str:
    """Write a question about one image as the processor's chat template has it, ready for the answer.

    A processor without chat template gets the question unchanged; if it does not place the image by itself, the
    question must begin with its image token.

    Args:
        processor: processor of an image-text-to-text model.
        question: the question.
        system: system message before it.
        image_first: whether the image stands before the question. If not, a line break and the image follow it; in a
            template that puts images first in any case (LLaVA-1.5's), the placeholder is written into the text.

    Raises:
        ValueError: when the question contains the image's placeholder (except, without a template, at its beginning),
            or there is a system message but no template for it.

    Example:
        >>> from types import SimpleNamespace
        >>> question_text(SimpleNamespace(chat_template=None), "Is this a cat? Answer:")
        'Is this a cat? Answer:'
    """
    has_template = getattr(processor, "chat_template", None) is not None
    token = _placeholder(processor)
    if token:
        refuse_control_tokens([question if has_template else question.removeprefix(token)], [token])
    if not has_template:
        if system is not None:
            raise ValueError(f"{type(processor).__name__} has no chat template to put a system message into.")
        return question
    if image_first:
        return _template_text(processor, [{"type": "image"}, {"type": "text", "text": question}], system)
    text = _template_text(processor, [{"type": "text", "text": f"{question}\n"}, {"type": "image"}], system)
    if token and text.index(token) < text.index(question):
        text = _template_text(processor, [{"type": "text", "text": f"{question}\n{token}"}], system)
    return text


def _placeholder(processor: ProcessorMixin) -> str:
    return str(getattr(processor, "image_token", None) or "")


def _template_text(processor: ProcessorMixin, content: list[dict[str, Any]], system: str | None) -> str:
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


class _Frame(NamedTuple):
    """What a template writes around a question."""

    before: str
    after: str


class QuestionTexts:
    """What `question_text` gives, with what a template writes around questions kept.

    Args:
        processor: as for `question_text`.

    Example:
        >>> from types import SimpleNamespace
        >>> QuestionTexts(SimpleNamespace(chat_template=None))("Is this a cat? Answer:")
        'Is this a cat? Answer:'
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self._frames: KeptBatches = KeptBatches()
        self._texts: KeptBatches = KeptBatches()

    def __call__(self, question: str, *, system: str | None = None, image_first: bool = True) -> str:
        """As `question_text`."""
        way = (str(getattr(self.processor, "chat_template", None)), system, image_first)
        frame = self._frames.get(way, lambda: self._frame(system, image_first=image_first))
        if frame is None or not question:  # a template may pass over a text that is empty
            write = partial(question_text, self.processor, question, system=system, image_first=image_first)
            return self._texts.get((question, way), write)
        refuse_control_tokens([question], filter(None, [_placeholder(self.processor)]))
        return f"{frame.before}{question}{frame.after}"

    def _frame(self, system: str | None, *, image_first: bool) -> _Frame | None:
        """None where there is no template, it changes questions, or the image's place depends on the question."""
        if getattr(self.processor, "chat_template", None) is None or not image_first:
            return None
        before, *after = question_text(self.processor, _PROBE, system=system).split(_PROBE)
        return _Frame(before, after[0]) if len(after) == 1 else None
