"""A local vision-language model as a judge, through transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from fk_reward.models import file_state
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, Messages, Sampling

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel


class TransformersEngine:
    """Any image-text-to-text model of transformers that has a chat template; one batch a call, padded on the left.

    Greedy at temperature 0. Otherwise answers are drawn from the model's distribution at that temperature; PyTorch's
    global random state is as before afterwards.

    Args:
        model: the model and its processor, as `vqascore` holds them.
        name: model and settings, part of the key of cached answers.

    Raises:
        ValueError: when the processor has no chat template.

    Example:
        >>> engine = TransformersEngine.from_pretrained("Qwen/Qwen3-VL-4B-Instruct")  # doctest: +SKIP
        >>> engine.model.to("cuda")  # doctest: +SKIP
    """

    def __init__(self, model: AnswerModel, *, name: str) -> None:
        if not getattr(model.processor, "chat_template", None):
            raise ValueError(f"{name}: the processor has no chat template, so the model cannot be asked to judge.")
        self.model = model
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype = torch.bfloat16,
        attn_implementation: str = "sdpa",
        device_map: str | dict[str, Any] | None = None,
        revision: str = "main",
    ) -> TransformersEngine:
        """Load a model, or share the one that another reward loaded with the same options.

        Args:
            model: hub id or folder of a model that `AutoModelForImageTextToText` has.
            torch_dtype: floating dtype of the weights.
            attn_implementation: "sdpa", "eager", "flash_attention_2", ...
            device_map: as in `PreTrainedModel.from_pretrained`.
            revision: branch, tag or commit of the hub repository.

        Raises:
            OSError: when files are missing.
            ValueError: for an architecture that transformers does not have, or a processor without chat template.
        """
        from fk_reward.rewards.answer_model import load_answer_model

        loaded = load_answer_model(
            model,
            torch_dtype=torch_dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            revision=revision,
        )
        return cls(loaded, name=f"transformers {file_state(model)}@{revision} {torch_dtype}")

    @torch.inference_mode()
    def generate(
        self, images: Sequence[Sequence[Image.Image]], messages: Sequence[Messages], *, sampling: Sampling
    ) -> list[str]:
        """Answer conversations in one batch.

        Raises:
            ValueError: when a text holds a control token of the model, or a conversation and its answer have more
                tokens than the model has positions.
        """
        processor, asked = self.model.processor, [_texts_of(message) for message in messages]
        self.model.refuse_control_tokens(asked)
        texts = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        nested = [list(of_one) for of_one in images]
        inputs = processor(text=texts, images=nested, padding=True, return_tensors="pt")
        self.model.require_positions(inputs["attention_mask"], asked, answer=sampling.max_new_tokens)
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)  # casts floating tensors only
        tokens = self._generate(dict(inputs), sampling)
        if not self.model.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers = processor.batch_decode(tokens, skip_special_tokens=True)
        return [self._marked(text, row, sampling) for text, row in zip(answers, tokens, strict=True)]

    def _generate(self, inputs: dict[str, Any], sampling: Sampling) -> Tensor:
        settings: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "num_beams": 1}
        settings["pad_token_id"] = self.model.processor.tokenizer.pad_token_id
        network = self.model.model
        if sampling.temperature == 0:
            # None, as transformers warns of sampling options from a generation_config.json when it does not sample.
            plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            return network.generate(**inputs, **settings, **plain)
        devices = list(range(torch.cuda.device_count())) if network.device.type == "cuda" else []
        # Without a CUDA model, seeding must not touch CUDA's generators, which fork_rng does not restore then.
        seed = torch.manual_seed if devices else torch.default_generator.manual_seed
        with torch.random.fork_rng(devices=devices):
            seed(sampling.seed)
            return network.generate(**inputs, **settings, do_sample=True, temperature=sampling.temperature)

    def _marked(self, text: str, tokens: Tensor, sampling: Sampling) -> str:
        """The text; marked where the model did not end it."""
        ends = self.model.model.generation_config.eos_token_id
        ended = torch.isin(tokens, torch.tensor([] if ends is None else ends).to(tokens)).any()
        return text if ended else FlawedAnswer(text, flaw=f"it was cut off at {sampling.max_new_tokens} tokens")


def _texts_of(messages: Messages) -> str:
    """The texts of a conversation, without its images."""
    return "\n".join(part["text"] for message in messages for part in message["content"] if part["type"] == "text")
