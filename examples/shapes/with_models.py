"""Runs a command of fk-reward with models of yours in place of those of the package with the same names.

It takes `--models FOLDER [FOLDER ...] -- scaling --suite shapes ...`, the folders called as the models are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from train_bands import models_of

from fk_reward.cli import main

USAGE = "Expected --models FOLDER [FOLDER ...] -- and a command of fk-reward with its options."


def split_tokens(tokens: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders of models, and the command behind them.

    Raises:
        SystemExit: without either.

    Example:
        >>> split_tokens(["--models", "runs/shapes-sd", "--", "rewards", "list"])
        ([...Path('runs/shapes-sd')], ['rewards', 'list'])
    """
    place = tokens.index("--") if "--" in tokens else 0
    if place < 2 or tokens[0] != "--models" or len(tokens) == place + 1:
        raise SystemExit(USAGE)
    return [Path(token) for token in tokens[1:place]], list(tokens[place + 1 :])


if __name__ == "__main__":
    folders, command = split_tokens(sys.argv[1:])
    with models_of(folders):
        main(command)
