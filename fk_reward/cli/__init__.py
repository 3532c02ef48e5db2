"""The command line, `fk-reward`."""

from fk_reward.cli.app import main, run_script

__all__ = ["main", "run_script"]
