"""From a question to the text that a processor reads: chat template, image first, generation prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fk_reward.rewards.prompt_limits import refuse_control_tokens

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def question_text(processor: ProcessorMixin, question: str, *, system: str | None = None) -> str:
    """Write a question about one image as the processor's chat template has it, ready for the answer.

    A processor without chat template gets the question as it is; where such a processor does not place the image by
    itself, the question must begin with its image token.

    Args:
        processor: processor of an image-text-to-text model.
        question: the question.
        system: system message before it.

    Raises:
        ValueError: when the question contains the token that stands for the image (elsewhere than at its beginning,
            where there is no template), or there is a system message but no template for it.

    Example:
        >>> from types import SimpleNamespace
        >>> question_text(SimpleNamespace(chat_template=None), "Is this a cat? Answer:")
        'Is this a cat? Answer:'
    """
    has_template = getattr(processor, "chat_template", None) is not None
    token = str(getattr(processor, "image_token", None) or "")
    if token:
        refuse_control_tokens([question if has_template else question.removeprefix(token)], [token])
    if not has_template:
        if system is not None:
            raise ValueError(f"{type(processor).__name__} has no chat template to put a system message into.")
        return question
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
