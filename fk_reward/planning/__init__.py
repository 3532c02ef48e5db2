"""Planning a steered call: memory and time, counted on the meta device before anything is downloaded."""

from fk_reward.planning.memory import PhaseNeed, Settings
from fk_reward.planning.planner import Plan, plan

__all__ = ["PhaseNeed", "Plan", "Settings", "plan"]
