"""A local vision-language model as a judge, through transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from fk_reward.models import file_state
from fk_reward.rewards.answer_inputs import with_answer
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, Messages, Sampling, StoppedAnswer

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel
    from fk_reward.rewards.vlm_judge.stopping import EnoughSaid


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
        """Answer conversations in one batch; with `sampling.enough`, each answer ends by itself once it says enough.

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
        start = 0 if self.model.is_encoder_decoder else inputs["input_ids"].shape[1]
        criterion = self._criterion(sampling, start)
        tokens = self._generate(dict(inputs), sampling, criterion)[:, start:]
        answers = [self._marked(text, row, sampling) for text, row in zip(self._decoded(tokens), tokens, strict=True)]
        stopped = {} if criterion is None else criterion.answers
        return [StoppedAnswer(stopped[row]) if row in stopped else text for row, text in enumerate(answers)]

    @torch.inference_mode()
    def weigh(
        self,
        images: Sequence[Sequence[Image.Image]],
        messages: Sequence[Messages],
        *,
        openings: Sequence[str],
        candidates: Sequence[str],
        ending: str = "",
    ) -> list[list[float]]:
        """Log-probabilities of what comes next in answers, as `WeighingEngine` says; a pass for each shared beginning.

        Ten marks of one token and the mark 10, which begins as 1 does, take two passes.

        Raises:
            ValueError: as `generate`; for an encoder-decoder; and when two candidates cannot be told apart.
        """
        if self.model.is_encoder_decoder:
            raise ValueError(f"{self.name} is an encoder-decoder: marks are read from text there, reading='text'.")
        asked = [_texts_of(message) for message in messages]
        self.model.refuse_control_tokens(asked)
        starts = self.model.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        texts = [start + self._joined(start, opening) for start, opening in zip(starts, openings, strict=True)]
        gap = "" if openings[0] else self.model.separator(starts[0])
        paths = [self._path(texts[0], f"{gap}{candidate}", ending) for candidate in candidates]
        lengths = _lengths_that_tell(paths, candidates)
        inputs = dict(
            self.model.processor(
                text=texts, images=[list(of_one) for of_one in images], padding=True, return_tensors="pt"
            )
        )
        self.model.require_positions(inputs["attention_mask"], asked, answer=max(map(len, paths)))
        needed = sorted({path[:end] for path, length in zip(paths, lengths, strict=True) for end in range(length)})
        after = {begun: self._next_log_probs(inputs, begun) for begun in needed}
        columns = [
            torch.stack([after[path[:end]][:, path[end]] for end in range(length)]).sum(dim=0)
            for path, length in zip(paths, lengths, strict=True)
        ]
        return torch.stack(columns, dim=1).tolist()

    def _joined(self, start: str, opening: str) -> str:
        return self.model.separator(start) + opening if opening else ""

    def _path(self, text: str, candidate: str, ending: str) -> tuple[int, ...]:
        """Ids of the tokens of a candidate and of what follows it."""
        before, after = self.model.token_ids(text), self.model.token_ids(text + candidate + ending)
        if after[: len(before)] != before or len(after) == len(before):
            raise ValueError(
                f"{self.name}: after {text[-20:]!r}, {candidate!r} is no token of its own, so that it cannot be "
                "weighed: let the opening end elsewhere."
            )
        return tuple(after[len(before) :])

    def _next_log_probs(self, inputs: dict[str, Any], begun: tuple[int, ...]) -> Tensor:
        rows = with_answer(inputs, list(begun)) if begun else dict(inputs)
        moved = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in rows.items()
        }
        return self.model.next_logits(moved).log_softmax(dim=-1).cpu()

    def _criterion(self, sampling: Sampling, start: int) -> EnoughSaid | None:
        if sampling.enough is None:
            return None
        from fk_reward.rewards.vlm_judge.stopping import EnoughSaid  # imports transformers

        return EnoughSaid(sampling.enough.close, decode=self._decoded, start=start)

    def _decoded(self, tokens: Tensor) -> list[str]:
        return self.model.processor.batch_decode(tokens, skip_special_tokens=True)

    def _generate(self, inputs: dict[str, Any], sampling: Sampling, criterion: EnoughSaid | None) -> Tensor:
        settings: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "num_beams": 1}
        if criterion is not None:
            settings["stopping_criteria"] = [criterion]
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


def _lengths_that_tell(paths: Sequence[tuple[int, ...]], candidates: Sequence[str]) -> list[int]:
    """How many tokens of each path it takes to tell it from all others."""
    lengths = []
    for place, path in enumerate(paths):
        others = [other for i, other in enumerate(paths) if i != place]
        length = next((n for n in range(1, len(path) + 1) if all(other[:n] != path[:n] for other in others)), None)
        if length is None:
            raise ValueError(f"The candidate {candidates[place]!r} is the beginning of another one: give an ending.")
        lengths.append(length)
    return lengths
