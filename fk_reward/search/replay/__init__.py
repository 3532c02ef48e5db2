"""Replay: what a search would have found on recorded rewards, without drawing anything."""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.search.replay.policies import Prices
    from fk_reward.search.replay.records import Knowledge, RewardRecords
    from fk_reward.search.replay.report import Gain, Replay, replay

_MODULES = {
    "Prices": "policies",
    **dict.fromkeys(("Knowledge", "RewardRecords"), "records"),
    **dict.fromkeys(("Gain", "Replay", "replay"), "report"),
}

__all__ = ["Gain", "Knowledge", "Prices", "Replay", "RewardRecords", "replay"]

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
