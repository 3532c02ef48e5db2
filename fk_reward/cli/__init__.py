"""The command line, `fk-reward`."""

from fk_reward.cli.app import app

__all__ = ["app"]
