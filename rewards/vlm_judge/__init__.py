"""Judges by text: vision-language models that are asked what they think of a picture, local or behind an endpoint.

The names below are imported when they are first used, so that reading a card waits for no model library.
"""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
    from fk_reward.rewards.vlm_judge.answers import FlawedAnswer, JudgeAnswerError, JudgeEndpointError
    from fk_reward.rewards.vlm_judge.engine import JudgeEngine, Sampling
    from fk_reward.rewards.vlm_judge.interview import Verdict
    from fk_reward.rewards.vlm_judge.loading import load_vlm_judge
    from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine
    from fk_reward.rewards.vlm_judge.preference_judge import PreferenceJudge
    from fk_reward.rewards.vlm_judge.template import JudgeTemplate, question_template
    from fk_reward.rewards.vlm_judge.templates import TEMPLATES
    from fk_reward.rewards.vlm_judge.transformers_engine import TransformersEngine
    from fk_reward.rewards.vlm_judge.vlm_judge import VLMJudge

_MODULES = {
    "AnswerCache": "answer_cache",
    "FlawedAnswer": "answers",
    "JudgeAnswerError": "answers",
    "JudgeEndpointError": "answers",
    "JudgeEngine": "engine",
    "JudgeTemplate": "template",
    "OpenAIEngine": "openai_engine",
    "PreferenceJudge": "preference_judge",
    "Sampling": "engine",
    "TEMPLATES": "templates",
    "TransformersEngine": "transformers_engine",
    "VLMJudge": "vlm_judge",
    "Verdict": "interview",
    "load_vlm_judge": "loading",
    "question_template": "template",
}

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

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
