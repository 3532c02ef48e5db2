"""Cards of the judges; readable without a model."""

from __future__ import annotations

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.vlm_judge.credentials import redact_text
from fk_reward.rewards.vlm_judge.template import JudgeTemplate

DEFAULT_MODEL = "Qwen/Qwen3-VL-4B-Instruct"
"""Judge of single pictures; fits beside SDXL on a card of 24 GB."""

REASONER = "alexgambashidze/qwen2.5vl_image_preference_reasoner"
"""Judge of comparisons."""

_KNOWN = {  # model -> licence and memory
    DEFAULT_MODEL: ("Apache-2.0", "9 GB in bfloat16"),
    REASONER: ("Apache-2.0 (Qwen2.5-VL-7B); the reasoner's is not stated", "17 GB in bfloat16"),
}


def default_model(template: JudgeTemplate) -> str:
    """The model that a template is asked of where nobody names one.

    Example:
        >>> from fk_reward.rewards.vlm_judge.templates import RUBRIC
        >>> default_model(RUBRIC)
        'Qwen/Qwen3-VL-4B-Instruct'
    """
    return REASONER if template.pairwise else DEFAULT_MODEL


def judge_card(template: JudgeTemplate, *, weights: str) -> RewardCard:
    """The card of a template asked of a model, called `vlm-judge` for "rubric" and `vlm-judge-<name>` for others.

    Args:
        template: what is asked.
        weights: hub id of the model, or any text that names it.

    Example:
        >>> from fk_reward.rewards.vlm_judge.templates import SAFETY
        >>> judge_card(SAFETY, weights="a model").name
        'vlm-judge-safety'
    """
    licence, memory = _KNOWN.get(weights, ("that of the model", "that of the model"))
    return RewardCard(
        name="vlm-judge" if template.name == "rubric" else f"vlm-judge-{template.name}",
        summary=template.summary,
        typical_range=template.score_range,
        licence=licence,
        source=template.source,
        weights=redact_text(weights),
        memory=memory,
    )
