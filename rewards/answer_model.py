"""A vision-language model asked one question about each image: the logits of the answer's first token."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from fk_reward.models import file_state, resolve_model
from fk_reward.rewards.answer_inputs import PromptInputs, with_answer
from fk_reward.rewards.clip_t5 import is_clip_t5, load_clip_t5
from fk_reward.rewards.continued_rows import ContinuedRows
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.processor_pixels import pixel_transform
from fk_reward.rewards.prompt_limits import control_tokens, num_positions, refuse_control_tokens, require_positions
from fk_reward.rewards.question_texts import QuestionTexts
from fk_reward.rewards.weights import WRAPPED_NAMES, check_complete

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDED_MODELS = ("llava", "vipllava")
"""Types of models whose authors pad images to a square, where the processor on the hub would cut out the centre."""

WINDOWED_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Types of models whose vision towers call their attention once for each window or image."""

_MODELS: WeakValueDictionary[tuple[str, ...], AnswerModel] = WeakValueDictionary()


class AnswerModel(nn.Module):
    """Any image-text-to-text model of transformers with its processor, decoder-only or encoder-decoder.

    A question is written by the processor's chat template, image first, with the generation prompt. A processor without
    template (BLIP-2, InstructBLIP) gets the question unchanged. Decoder-only models are padded on the left,
    so that the last position of each row is the one that predicts the answer; encoder-decoders on the right.

    Where the image processor is one that `pixel_transform` reproduces, the images stay tensors on their device and the
    logits are differentiable with respect to them; the processor then makes no pixels at all. Any other one gets them
    as 8-bit PIL images.

    LLaVA-1.5 sees the whole image: as in its authors' code it is padded to a square of CLIP's mean colour, although the
    processor of `llava-hf/llava-1.5-7b-hf` cuts out the central square.

    Args:
        model: what `AutoModelForImageTextToText` loads; put into evaluation mode and frozen, in place.
        processor: its processor, or one with the same attributes (`ClipT5Processor`); the padding of its tokenizer is
            set, in place.
        pad_to_square: whether to pad images to a square; None for what the processor says, and True for
            `PADDED_MODELS` where it cuts out the centre.

    Attributes:
        differentiable: whether gradients reach the images.

    Raises:
        ValueError: for `pad_to_square=True` with an image processor that is not like CLIP's.

    Example:
        >>> model = load_answer_model("Qwen/Qwen3-VL-2B-Instruct")  # doctest: +SKIP
        >>> logits = model(images, ["Is this a cat?"] * len(images))  # doctest: +SKIP
        >>> logits.softmax(dim=-1)[:, model.answer_tokens(["Yes"])]  # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, *, pad_to_square: bool | None = None) -> None:
        super().__init__()
        if model.config.model_type in WINDOWED_MODELS:
            from fk_reward.rewards.batched_windows import batch_windows

            batch_windows(model)
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self._texts = QuestionTexts(processor)
        configs = (model.config, model.config.get_text_config())  # for InstructBLIP's T5, only the second says it
        self.is_encoder_decoder = any(bool(config.is_encoder_decoder) for config in configs)
        self._decoder_start = _decoder_start(model) if self.is_encoder_decoder else None
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "right" if self.is_encoder_decoder else "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
        self._transform = _pixel_transform_of(processor, pad_to_square, model_type=model.config.model_type)
        self._prompts = None if self._transform is None else self._prompt_inputs(self._transform)

    def _prompt_inputs(self, transform: Callable[[Tensor], Tensor]) -> PromptInputs:
        rope_index = getattr(getattr(self.model, "model", None), "get_rope_index", None)
        return PromptInputs(self.processor, transform, rope_index=rope_index)

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

        An answer is joined to the text before it as the model would write it: with a space after "ASSISTANT:", without
        one after a line break or a special token. In an encoder-decoder it begins the decoder's text.

        Args:
            answers: words of one token.
            question: a typical question; only its end matters, and only without chat template.
            system: as for `forward`.
            opening: as for `forward`.

        Raises:
            ValueError: for an answer that is not exactly one token (the message shows the tokens), or a processor that
                inserts tokens between the question and the answer.
        """
        context = opening
        if not self.is_encoder_decoder:
            context = self._text(question, system, opening)
            self._check_ending(context)
        return [self._answer_token(context, answer) for answer in answers]

    def first_tokens(self, answers: Sequence[str], *, system: str | None = None, opening: str = "") -> list[int]:
        """Ids of the first tokens of answers of any length, after an opening; for decoder-only models.

        Args:
            answers: words.
            system: as for `forward`.
            opening: as for `forward`.

        Raises:
            ValueError: when two of them begin with the same token, or one runs into the opening.
        """
        context = self._text("?", system, opening)
        found = [self._answer_ids(context, answer)[0] for answer in answers]
        if len(set(found)) < len(found):
            raise ValueError(f"The answers {', '.join(map(repr, answers))} do not differ in their first tokens.")
        return found

    def forward(
        self,
        images: Tensor,
        questions: Sequence[str],
        *,
        system: str | None = None,
        opening: str | Sequence[str] = "",
        image_first: bool = True,
    ) -> Tensor:
        """Logits of the token that comes next after question and opening, in one pass for all images.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.
            questions: B strings.
            system: system message before the question; None for the chat template's default, if it has one.
            opening: words that the model's answer is made to begin with, those of all or of each; of each for
                decoder-only models alone.
            image_first: whether the image stands before the question.

        Returns:
            (B, V) float32, before softmax.

        Raises:
            ValueError: when a question contains the image's placeholder, or has with the image more tokens than the
                model has positions; and as the processor.

        B: number of images, H, W: height and width, V: size of the vocabulary.
        """
        openings = [opening] * len(questions) if isinstance(opening, str) else list(opening)
        if self.is_encoder_decoder and len(set(openings)) > 1:
            raise ValueError("An encoder-decoder takes one opening for all images: ask about them one by one.")
        asked = zip(questions, openings, strict=True)
        texts = [self._text(question, system, begun, image_first=image_first) for question, begun in asked]
        inputs = self._inputs(images, texts, questions)
        return self._last_logits(inputs, self._ids(openings[0]), num_tokens=1)[:, -1]

    def read(self, images: Tensor, questions: Sequence[str], *, opening: str) -> ContinuedRows:
        """Read images, questions and the beginning of an answer once, to go on behind them; decoder-only.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.
            questions: B strings.
            opening: words that the answer of each is made to begin with.

        Raises:
            ValueError: as `forward`.

        B: number of images, H, W: height and width.
        """
        texts = [self._text(question, None, opening) for question in questions]
        return ContinuedRows(self.model, self._inputs(images, texts, questions), **self._kept_logits(1))

    def joined_ids(self, words: Sequence[str], *, opening: str) -> list[list[int]]:
        """Ids of words that follow an opening without a gap; for decoder-only models.

        Args:
            words: texts.
            opening: words that the answer is made to begin with; only its end matters.

        Raises:
            ValueError: for a text whose tokens are others behind the opening than without what comes before.
        """
        context = self._text("?", None, opening)
        return [self._ids_behind(context, text) for text in words]

    def answer_log_probabilities(
        self, images: Tensor, questions: Sequence[str], answer: str, *, system: str | None = None, opening: str = ""
    ) -> Tensor:
        """Log-probabilities of a whole answer: of its tokens, and of the end of the sequence after them.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.
            questions: B strings.
            answer: text of any number of tokens.
            system: as for `forward`.
            opening: what stands before the answer, and is given; for decoder-only models.

        Returns:
            (B, n + 1) float32, n tokens and the end.

        Raises:
            ValueError: as `forward`.

        B: number of images, H, W: height and width.
        """
        texts = [self._text(question, system, opening) for question in questions]
        ids = self._ids(answer) if self.is_encoder_decoder else self._answer_ids(texts[0], answer)
        targets = torch.tensor([*ids, self.processor.tokenizer.eos_token_id], device=self.device)
        inputs = self._inputs(images, texts, questions, answer=() if self.is_encoder_decoder else ids)
        logits = self._last_logits(inputs, ids, num_tokens=len(targets))
        return logits.log_softmax(dim=-1).gather(2, targets.expand(len(images), -1).unsqueeze(2)).squeeze(2)

    def _last_logits(self, inputs: dict[str, Any], decoder_ids: Sequence[int], *, num_tokens: int) -> Tensor:
        """(B, num_tokens, V) float32, logits at the last positions."""
        if self.is_encoder_decoder:
            start = torch.tensor([[self._decoder_start, *decoder_ids]], device=self.device)
            inputs["decoder_input_ids"] = start.expand(len(inputs["input_ids"]), -1)
        else:
            inputs |= self._kept_logits(num_tokens)
        return self.model(**inputs, use_cache=False).logits[:, -num_tokens:].float()

    def _kept_logits(self, num_tokens: int) -> dict[str, int]:
        """Few are read, and (B, S, V) logits take gigabytes."""
        return {"logits_to_keep": num_tokens} if self._keeps_logits else {}

    def next_logits(self, inputs: dict[str, Any]) -> Tensor:
        """Logits (B, V) float32 of the token after rows of tokens, given what a processor makes of them."""
        return self._last_logits(dict(inputs), (), num_tokens=1)[:, -1]

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text without special tokens around it."""
        return self._ids(text)

    def separator(self, context: str) -> str:
        """What stands between a context and the words that follow it: a space, or nothing."""
        return self._separator(context)

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

    def _text(self, question: str, system: str | None, opening: str, *, image_first: bool = True) -> str:
        text = self._texts(question, system=system, image_first=image_first)
        return text if self.is_encoder_decoder or not opening else text + self._separator(text) + opening

    def _inputs(
        self, images: Tensor, texts: list[str], questions: Sequence[str], *, answer: Sequence[int] = ()
    ) -> dict[str, Any]:
        """What the model reads; `answer` ends each row, and counts as part of it."""
        if self._prompts is None or self._transform is None:
            inputs = self._processed(images, texts, answer)
        else:
            height, width = images.shape[-2:]
            inputs = dict(self._prompts(texts, (height, width), answer=answer))
        mask = inputs["attention_mask"]  # still on the CPU: the device is not waited for
        self.require_positions(mask, questions)
        if self._prompts is not None and not self.is_encoder_decoder and bool(mask.all()):
            del inputs["attention_mask"]  # transformers would ask the device whether it masks anything
        if self._transform is not None:
            inputs["pixel_values"] = self._transform(images)
        return {name: value.to(self.device, self._dtype_of(value)) for name, value in inputs.items()}

    def _processed(self, images: Tensor, texts: list[str], answer: Sequence[int]) -> dict[str, Tensor]:
        """By a processor whose pixels are not reproduced."""
        nested = [[image] for image in to_pil(images)]  # a list for each text: every processor accepts this
        inputs = dict(self.processor(images=nested, text=texts, padding=True, return_tensors="pt"))
        return with_answer(inputs, answer) if answer else inputs

    def _dtype_of(self, value: Tensor) -> torch.dtype:
        return self.dtype if value.is_floating_point() else value.dtype

    def _answer_ids(self, context: str, answer: str) -> list[int]:
        """Ids of an answer of any length as it is joined to the text before it."""
        return self._ids_behind(context, self._separator(context) + answer)

    def _ids_behind(self, context: str, text: str) -> list[int]:
        before, after = self._ids(context), self._ids(context + text)
        if after[: len(before)] != before or len(after) == len(before):
            raise ValueError(f"The answer {text!r} runs into {context[-20:]!r}: let the opening end elsewhere.")
        return after[len(before) :]

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
        """Refuse processors that add tokens after the text (PaliGemma's adds a line break)."""
        inputs = self.processor(images=[[Image.new("RGB", (32, 32))]], text=[text], return_tensors="pt")
        got, expected = inputs["input_ids"][0, -1].item(), self._ids(text)[-1]
        if got != expected:
            got, expected = self.processor.tokenizer.convert_ids_to_tokens([got, expected])
            raise ValueError(
                f"{type(self.processor).__name__} ends the text {text[-20:]!r} with the token {got!r} instead of "
                f"{expected!r}: the next token is not the answer."
            )

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _separator(self, context: str) -> str:
        if not context or context[-1].isspace():  # the usual case; special tokens take long to list
            return ""
        return "" if context.endswith(tuple(self.processor.tokenizer.all_special_tokens)) else " "


def _pixel_transform_of(
    processor: ProcessorMixin, pad: bool | None, *, model_type: str
) -> Callable[[Tensor], Tensor] | None:
    own = getattr(processor, "pixel_transform", None)
    if own is not None:
        if pad is False:
            raise ValueError(f"{type(processor).__name__} always pads to a square: leave out pad_to_square=False.")
        return own
    if pad is None:
        crops = processor.image_processor.to_dict().get("do_center_crop", False)
        pad = True if crops and model_type in PADDED_MODELS else None
    return pixel_transform(processor.image_processor, pad_to_square=pad)


def _decoder_start(model: PreTrainedModel) -> int:
    """The token with which generation begins."""
    configs = (model.generation_config, model.config, model.config.get_text_config(decoder=True))
    found = [getattr(config, "decoder_start_token_id", None) for config in configs]
    start = next((token for token in found if token is not None), None)
    if start is None:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder, but no decoder_start_token_id is configured.")
    return start


def load_answer_model(
    path: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
    pad_to_square: bool | None = None,
) -> AnswerModel:
    """Load an image-text-to-text model with its processor, or return the one that another reward holds.

    A model lives as long as a reward holds it; rewards that share one move together. Once one of them has moved it to
    another dtype, the model is no longer shared. Code that comes with a checkpoint is never run.

    Args:
        path: hub id or folder of a model that `AutoModelForImageTextToText` has, or of a CLIP-FlanT5.
        torch_dtype: floating dtype of the weights.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        pad_to_square: as for `AnswerModel`.

    Raises:
        OSError: when files are missing.
        ValueError: for an architecture that transformers does not have, a checkpoint that lacks weights, and as
            `AnswerModel`.
    """
    path = resolve_model(path)
    settings = {"attn_implementation": attn_implementation, "device_map": device_map, "revision": revision}
    key = (file_state(path), str(torch_dtype), repr(settings), str(pad_to_square))
    model = _MODELS.get(key)
    if model is None or model.dtype != torch_dtype:
        model = _load(path, {"dtype": torch_dtype, **settings}, pad_to_square)
        _MODELS[key] = model
    return model


def _load(path: str, options: dict[str, Any], pad_to_square: bool | None) -> AnswerModel:
    revision = options["revision"]
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if is_clip_t5(config):
        return AnswerModel(*load_clip_t5(path, **options), pad_to_square=pad_to_square)
    _check_architecture(path, config)
    model, info = AutoModelForImageTextToText.from_pretrained(
        path, key_mapping=dict(WRAPPED_NAMES), output_loading_info=True, **options
    )
    check_complete(path, info)
    return AnswerModel(model, load_processor(path, revision=revision), pad_to_square=pad_to_square)


def load_processor(path: str | os.PathLike[str], *, revision: str = "main") -> ProcessorMixin:
    """Load the processor that belongs to a model, with PIL's image processor and without what reads videos.

    transformers' `AutoProcessor` requires torchvision for models that also read videos (all of Qwen's do).

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of the hub repository.

    Raises:
        OSError: when files are missing.
    """
    config = AutoConfig.from_pretrained(path, revision=revision)
    return without_video(PROCESSOR_MAPPING[type(config)]).from_pretrained(path, revision=revision, backend="pil")


def without_video(processor: type[ProcessorMixin]) -> Any:
    """The class of a processor without the part that reads videos, which requires torchvision."""
    names = [name for name in processor.get_attributes() if name != "video_processor"]
    return type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda _: names)})


def _check_architecture(path: str, config: dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"{path} is of type {model_type!r} ({config.get('architectures')}), which transformers' "
            "AutoModelForImageTextToText does not have, and code that comes with a checkpoint is never run. Use a "
            "model that transformers has: Qwen/Qwen3-VL-2B-Instruct, llava-hf/llava-1.5-7b-hf, ..."
        )
