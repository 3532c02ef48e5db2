"""Settings of FK steering that do not follow the defaults, for tests of how it works."""

from dataclasses import replace

from fk_reward import FKSteeringConfig
from fk_reward.search.feynman_kac import PAPER


def early(**fields) -> FKSteeringConfig:
    """The paper's settings with these changed: they score early, and without `steer`'s help."""
    return replace(PAPER, **fields)
