"""Judges of questions by name: a local model, an endpoint, or the detector of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from fk_reward.benchmarks.questions.answerers import DEFAULT_JUDGE, EngineAnswerer, ModelAnswerer
from fk_reward.benchmarks.questions.geneval2 import with_questions
from fk_reward.benchmarks.questions.judge import SOFT_TIFA, QuestionJudge, Style
from fk_reward.benchmarks.questions.shapes import VERIFIER, verifier_judge
from fk_reward.benchmarks.task import Judge, TaskOptions, Verdict


def question_judge(options: TaskOptions, style: Style) -> Callable[[str], Judge]:
    """A function of the device that loads the judge of a suite of questions.

    Args:
        options: `judge`, `judge_url`, `judge_batch_size`.
        style: how the benchmark asks and scores.
    """
    name, url, batch_size = options.judge, options.judge_url, options.judge_batch_size
    return lambda device: load_judge(name, style, device=device, url=url, batch_size=batch_size)


def second_record_judge(options: TaskOptions) -> Callable[[str], Judge] | None:
    """A function of the device that loads the second judge of a suite of GenEval's records; None without one.

    Args:
        options: `second_judge`, `judge_batch_size`.
    """
    name, batch_size = options.second_judge, options.judge_batch_size
    if name is None:
        return None
    return lambda device: RecordQuestions(load_judge(name, SOFT_TIFA, device=device, batch_size=batch_size))


class RecordQuestions:
    """A judge that asks GenEval 2's questions about images of the first GenEval's records.

    Args:
        judge: of questions.

    Example:
        >>> from fk_reward.benchmarks.geneval.prompts import single_object_record
        >>> judge = RecordQuestions(verifier_judge())
        >>> judge.judge_images([single_object_record("star")], [Image.new("RGB", (64, 64), "white")])[0].reason
        'Are there any stars in the image? No, not Yes'
    """

    def __init__(self, judge: QuestionJudge) -> None:
        self.judge = judge
        self.identity: dict[str, Any] = {**judge.identity, "records": "GenEval's"}

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge images by questions about what their records ask for."""
        return self.judge.judge_images([with_questions(record) for record in records], images)

    def self_test(self) -> None:
        """That of the judge of questions."""
        self.judge.self_test()


def load_judge(
    name: str | None, style: Style, *, device: str, url: str | None = None, batch_size: int = 16
) -> QuestionJudge:
    """A judge of questions.

    Args:
        name: hub id or folder of any image-text-to-text model; None for `DEFAULT_JUDGE`; `VERIFIER` for questions of
            the shapes world. With `url`, what the endpoint calls the model.
        style: how the benchmark asks and scores.
        device: of a local model, which is in bfloat16 on a GPU and in float32 on the CPU.
        url: address of an OpenAI-compatible endpoint; None for a local model.
        batch_size: questions at once.

    Raises:
        OSError: files are missing.
        ImportError: for an endpoint without the `openai` package.
        ValueError: an architecture that transformers does not have; an endpoint without a model's name.
    """
    if url is not None:
        from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine

        if name is None:
            raise ValueError("Name the model of the endpoint: --judge NAME --judge-url URL.")
        return QuestionJudge(EngineAnswerer(OpenAIEngine(name, base_url=url), batch_size=batch_size), style)
    if name == VERIFIER:
        return verifier_judge(style)
    from fk_reward.rewards.answer_model import load_answer_model

    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = load_answer_model(name or DEFAULT_JUDGE, torch_dtype=dtype).to(device)
    return QuestionJudge(ModelAnswerer(model, name=name or DEFAULT_JUDGE, batch_size=batch_size), style)
