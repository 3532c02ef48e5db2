"""A vision-language model asked one question about each image: the logits of the answer's first token."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from fk_reward.rewards.inputs import pictures_of
from fk_reward.rewards.prompt_limits import control_tokens, num_positions, refuse_control_tokens, require_positions
from fk_reward.rewards.vqascore.pixels import pixel_transform
from fk_reward.rewards.vqascore.question_text import question_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


class AnswerModel(nn.Module):
    """Any image-text-to-text model of transformers with its processor, decoder-only or encoder-decoder.

    A question is written by the processor's chat template, image first, with the generation prompt. A processor without
    template (BLIP-2, InstructBLIP) gets the question as it is. Decoder-only models are padded on the left,
    so that the last position of each row is the one that predicts the answer; encoder-decoders on the right.

    Where the image processor is one that `pixels.py` reproduces, the pictures stay tensors on their device and the
    logits are differentiable with respect to them; any other one gets them as 8-bit PIL pictures.

    Args:
        model: what `AutoModelForImageTextToText` loads; put into evaluation mode and frozen, in place.
        processor: its processor, or one with what is asked of it here (`ClipT5Processor`); the padding of its tokenizer
            is set, in place.

    Attributes:
        differentiable: whether gradients reach the images.

    Example:
        >>> model = load_answer_model("Qwen/Qwen3-VL-2B-Instruct")  # doctest: +SKIP
        >>> logits = model(images, ["Is this a cat?"] * len(images))  # doctest: +SKIP
        >>> logits.softmax(dim=-1)[:, model.answer_tokens(["Yes"])]  # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        configs = (model.config, model.config.get_text_config())  # InstructBLIP's own does not say what its T5 is
        self.is_encoder_decoder = any(bool(config.is_encoder_decoder) for config in configs)
        self._decoder_start = _decoder_start(model) if self.is_encoder_decoder else None
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._transform = _pixel_transform_of(processor)
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "right" if self.is_encoder_decoder else "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked, so any token does

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the images."""
        return self._transform is not None

    @property
    def device(self) -> torch.device:
        """Where the inputs belong."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the weights."""
        return self.model.dtype

    def answer_tokens(
        self, answers: Sequence[str], *, question: str = "?", system: str | None = None, opening: str = ""
    ) -> list[int]:
        """Ids of the tokens with which the model would write each answer.

        An answer follows what stands before it as the tokenizer of the model would have it: after "ASSISTANT:" it
        begins with a space, after a line break or a special token it does not. In an encoder-decoder it opens the
        decoder's text.

        Args:
            answers: words of one token.
            question: one such as will be asked; only its end matters, and only without chat template.
            system: as for `forward`.
            opening: as for `forward`.

        Raises:
            ValueError: for an answer that is not exactly one token (it shows the tokens), or a processor that puts
                something of its own between the question and the answer.
        """
        context = opening
        if not self.is_encoder_decoder:
            context = self._text(question, system, opening)
            self._check_ending(context)
        return [self._answer_token(context, answer) for answer in answers]

    def forward(
        self, images: Tensor, questions: Sequence[str], *, system: str | None = None, opening: str = ""
    ) -> Tensor:
        """Logits of the token that comes next after question and opening, in one pass for all images.

        Args:
            images: (B, 3, H, W) float in [0, 1].
            questions: B strings.
            system: system message before the question; None for none (some chat templates have one of their own).
            opening: words with which the model's answer is made to begin.

        Returns:
            (B, V) float32, before softmax.

        Raises:
            ValueError: when a question contains the token that stands for the image, or has with the image more tokens
                than the model has positions; and as the processor.

        B: number of images, H, W: height and width, V: size of the vocabulary.
        """
        inputs = self._inputs(images, [self._text(question, system, opening) for question in questions])
        self.require_positions(inputs["attention_mask"], questions)
        if self.is_encoder_decoder:
            inputs["decoder_input_ids"] = self._decoder_input_ids(opening).expand(len(images), -1)
        elif self._keeps_logits:
            inputs["logits_to_keep"] = 1
        return self.model(**inputs, use_cache=False).logits[:, -1].float()

    def refuse_control_tokens(self, prompts: Sequence[str]) -> None:
        """Raise a ValueError for a prompt that holds a control token of the tokenizer, or the image's."""
        image_token = getattr(self.processor, "image_token", None)
        refuse_control_tokens(prompts, control_tokens(self.processor.tokenizer, image_token))

    def require_positions(self, attention_mask: Tensor, prompts: Sequence[str], *, answer: int = 0) -> None:
        """Raise a ValueError for a row of tokens that, with `answer` more, is longer than the model.

        Args:
            attention_mask: (B, S), 1 at real tokens.
            prompts: B texts, for the message.
            answer: tokens that are to be generated.
        """
        answer = 0 if self.is_encoder_decoder else answer
        require_positions(attention_mask.sum(dim=1).tolist(), prompts, num_positions(self.model.config), answer=answer)

    def _text(self, question: str, system: str | None, opening: str) -> str:
        text = question_text(self.processor, question, system=system)
        return text if self.is_encoder_decoder or not opening else text + self._separator(text) + opening

    def _inputs(self, images: Tensor, texts: list[str]) -> dict[str, Any]:
        nested = [[picture] for picture in self._pictures(images)]  # one list a text: every processor understands that
        inputs = dict(self.processor(images=nested, text=texts, padding=True, return_tensors="pt"))
        if self._transform is not None:
            inputs["pixel_values"] = self._pixel_values(images, expected=inputs["pixel_values"].shape)
        return {name: value.to(self.device, self._dtype_of(value)) for name, value in inputs.items()}

    def _pictures(self, images: Tensor) -> list[Image.Image]:
        """What the processor gets: where tensors take the pictures' place, only their size matters."""
        if self._transform is None:
            return pictures_of(images)
        height, width = images.shape[-2:]
        return [Image.new("RGB", (width, height))] * len(images)

    def _pixel_values(self, images: Tensor, *, expected: torch.Size) -> Tensor:
        pixels = self._transform(images)  # type: ignore[misc]
        if pixels.shape != expected:
            raise ValueError(
                f"The tensors made for the images have shape {tuple(pixels.shape)}, but "
                f"{type(self.processor).__name__} makes {tuple(expected)}: its settings are not reproduced; please "
                "report the checkpoint."
            )
        return pixels

    def _dtype_of(self, value: Tensor) -> torch.dtype:
        return self.dtype if value.is_floating_point() else value.dtype

    def _decoder_input_ids(self, opening: str) -> Tensor:
        return torch.tensor([[self._decoder_start, *self._ids(opening)]], device=self.device)

    def _answer_token(self, context: str, answer: str) -> int:
        before, after = self._ids(context), self._ids(context + self._separator(context) + answer)
        if after[:-1] != before:
            pieces = self.processor.tokenizer.convert_ids_to_tokens(after[-8:])
            raise ValueError(
                f"The answer {answer!r} must be exactly one token after {context[-20:]!r}, but the text ends in the "
                f"tokens {pieces}; choose another answer."
            )
        return after[-1]

    def _check_ending(self, text: str) -> None:
        """Refuse processors after which a model does not stand where the text ends (PaliGemma's adds a line break)."""
        inputs = self.processor(images=[[Image.new("RGB", (32, 32))]], text=[text], return_tensors="pt")
        got, expected = inputs["input_ids"][0, -1].item(), self._ids(text)[-1]
        if got != expected:
            got, expected = self.processor.tokenizer.convert_ids_to_tokens([got, expected])
            raise ValueError(
                f"{type(self.processor).__name__} ends the text {text[-20:]!r} with the token {got!r} in place of "
                f"{expected!r}: what follows is not the answer."
            )

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _separator(self, context: str) -> str:
        specials = tuple(self.processor.tokenizer.all_special_tokens)
        return "" if not context or context[-1].isspace() or context.endswith(specials) else " "


def _pixel_transform_of(processor: ProcessorMixin) -> Callable[[Tensor], Tensor] | None:
    own = getattr(processor, "pixel_transform", None)
    return own if own is not None else pixel_transform(processor.image_processor)


def _decoder_start(model: PreTrainedModel) -> int:
    """The token with which generation begins."""
    configs = (model.generation_config, model.config, model.config.get_text_config(decoder=True))
    found = [getattr(config, "decoder_start_token_id", None) for config in configs]
    start = next((token for token in found if token is not None), None)
    if start is None:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder, but no decoder_start_token_id is configured.")
    return start
