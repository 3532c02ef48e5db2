"""Judges by text: vision-language models that are asked what they think of an image, local or behind an endpoint."""

from __future__ import annotations

from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, JudgeAnswerError, JudgeEndpointError, JudgeEngine, Sampling
from fk_reward.rewards.vlm_judge.entries import load_vlm_judge
from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine
from fk_reward.rewards.vlm_judge.preference_judge import PreferenceJudge
from fk_reward.rewards.vlm_judge.templates import TEMPLATES, JudgeTemplate, question_template
from fk_reward.rewards.vlm_judge.transformers_engine import TransformersEngine
from fk_reward.rewards.vlm_judge.vlm_judge import Verdict, VLMJudge

__all__ = [
    "TEMPLATES",
    "AnswerCache",
    "FlawedAnswer",
    "JudgeAnswerError",
    "JudgeEndpointError",
    "JudgeEngine",
    "JudgeTemplate",
    "OpenAIEngine",
    "PreferenceJudge",
    "Sampling",
    "TransformersEngine",
    "VLMJudge",
    "Verdict",
    "load_vlm_judge",
    "question_template",
]
