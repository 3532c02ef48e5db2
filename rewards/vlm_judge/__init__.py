"""Judges by text: vision-language models that are asked what they think of an image, local or behind an endpoint."""

from __future__ import annotations

from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
from fk_reward.rewards.vlm_judge.author_templates import (
    AUTHOR_TEMPLATES,
    evalalign_template,
    llavaguard_template,
    rating_template,
    viescore_template,
)
from fk_reward.rewards.vlm_judge.engine import (
    FlawedAnswer,
    JudgeAnswerError,
    JudgeEndpointError,
    JudgeEngine,
    Sampling,
    StoppedAnswer,
)
from fk_reward.rewards.vlm_judge.enough import Enough, close_match, close_object
from fk_reward.rewards.vlm_judge.entries import load_vlm_judge
from fk_reward.rewards.vlm_judge.listener import ListenerReward
from fk_reward.rewards.vlm_judge.mark_entries import load_mark_judge
from fk_reward.rewards.vlm_judge.mark_judge import MarkJudge
from fk_reward.rewards.vlm_judge.marks import MarkQuestion, MarkTemplate, WeighingEngine
from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine
from fk_reward.rewards.vlm_judge.preference_judge import PreferenceJudge
from fk_reward.rewards.vlm_judge.templates import TEMPLATES, JudgeTemplate, question_template
from fk_reward.rewards.vlm_judge.transformers_engine import TransformersEngine
from fk_reward.rewards.vlm_judge.vlm_judge import Verdict, VLMJudge

__all__ = [
    "AUTHOR_TEMPLATES",
    "TEMPLATES",
    "AnswerCache",
    "Enough",
    "FlawedAnswer",
    "JudgeAnswerError",
    "JudgeEndpointError",
    "JudgeEngine",
    "JudgeTemplate",
    "ListenerReward",
    "MarkJudge",
    "MarkQuestion",
    "MarkTemplate",
    "OpenAIEngine",
    "PreferenceJudge",
    "Sampling",
    "StoppedAnswer",
    "TransformersEngine",
    "VLMJudge",
    "Verdict",
    "WeighingEngine",
    "close_match",
    "close_object",
    "evalalign_template",
    "llavaguard_template",
    "load_mark_judge",
    "load_vlm_judge",
    "question_template",
    "rating_template",
    "viescore_template",
]
