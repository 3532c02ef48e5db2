"""The judges' names in the registry; importing this module loads no model."""

from __future__ import annotations

from functools import partial

from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.vlm_judge.cards import default_model, judge_card
from fk_reward.rewards.vlm_judge.loading import load_vlm_judge
from fk_reward.rewards.vlm_judge.template import JudgeTemplate
from fk_reward.rewards.vlm_judge.templates import ALIGNMENT, PREFERENCE, RUBRIC, SAFETY


def _entry(template: JudgeTemplate) -> RewardEntry:
    card = judge_card(template, weights=default_model(template))
    return RewardEntry(card, partial(load_vlm_judge, template=template))


VLM_JUDGE = _entry(RUBRIC)
VLM_JUDGE_ALIGNMENT = _entry(ALIGNMENT)
VLM_JUDGE_SAFETY = _entry(SAFETY)
VLM_JUDGE_PREFERENCE = _entry(PREFERENCE)
