"""Rewards that read the probability of an answer: VQAScore, LLaVA-score, and the model that Q-Align's reward shares.

The names below are imported when they are first used, so that reading a card does not wait for transformers.
"""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.rewards.vqascore.answer_model import AnswerModel
    from fk_reward.rewards.vqascore.loading import load_answer_model
    from fk_reward.rewards.vqascore.vqascore import VQAScore, answer_probability

_MODULES = {
    "AnswerModel": "answer_model",
    "VQAScore": "vqascore",
    "answer_probability": "vqascore",
    "load_answer_model": "loading",
}

__all__ = ["AnswerModel", "VQAScore", "answer_probability", "load_answer_model"]

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
