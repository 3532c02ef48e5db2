"""Planning a steered call: memory and time, counted on the meta device before anything is downloaded."""

from fk_reward.planning.memory import PhaseNeed, Settings
from fk_reward.planning.planner import Plan, plan
from fk_reward.planning.prices import PRICES, PriceList

__all__ = ["PRICES", "PhaseNeed", "Plan", "PriceList", "Settings", "plan"]
