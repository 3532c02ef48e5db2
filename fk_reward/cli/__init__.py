"""The command line, `fk-reward`."""

from fk_reward.cli.app import main

__all__ = ["main"]
