"""Judges by name: which answerer they have, and GenEval's records asked as questions."""

from __future__ import annotations

import pytest
from PIL import Image

from fk_reward.benchmarks.geneval.prompts import counting_record
from fk_reward.benchmarks.questions.answerers import EngineAnswerer, ModelAnswerer
from fk_reward.benchmarks.questions.judge import SOFT_TIFA, Style
from fk_reward.benchmarks.questions.loading import RecordQuestions, load_judge, question_judge, second_record_judge
from fk_reward.benchmarks.questions.shapes import ShapesAnswerer, verifier_judge
from fk_reward.benchmarks.task import TaskOptions
from tests.tiny.answer_models import write_qwen3_vl


def test_a_local_model(tmp_path):
    folder = str(write_qwen3_vl(tmp_path))
    judge = question_judge(TaskOptions(judge=folder, judge_batch_size=3), Style("x", "dpg"))("cpu")
    assert isinstance(judge.answerer, ModelAnswerer)
    assert (judge.answerer.batch_size, judge.style.rule, judge.identity["model"]) == (3, "dpg", folder)
    assert judge.identity["dtype"] == "torch.float32"


def test_the_verifier():
    judge = load_judge("verifier", Style("x", "share"), device="cpu")
    assert isinstance(judge.answerer, ShapesAnswerer)
    judge.self_test()


def test_an_endpoint():
    pytest.importorskip("openai")
    judge = load_judge("judge", SOFT_TIFA, device="cpu", url="http://localhost:9/v1", batch_size=5)
    assert isinstance(judge.answerer, EngineAnswerer)
    assert "http://localhost:9/v1" in judge.identity["model"]
    with pytest.raises(ValueError, match="--judge NAME --judge-url URL"):
        load_judge(None, SOFT_TIFA, device="cpu", url="http://localhost:9/v1")


def test_a_second_judge_only_where_one_is_named():
    assert second_record_judge(TaskOptions()) is None
    judge = second_record_judge(TaskOptions(second_judge="verifier"))("cpu")
    judge.self_test()
    assert judge.identity != verifier_judge().identity
    (verdict,) = judge.judge_images([counting_record("star", 2)], [Image.new("RGB", (64, 64), "white")])
    assert verdict.reason.startswith("How many stars are in the image? zero, not two")
    assert isinstance(judge, RecordQuestions)
