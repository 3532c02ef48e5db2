"""`fk-reward benchmark ...`: each benchmark is a module with a `main` whose parameters are the options."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

BENCHMARKS: dict[str, str] = {
    "preferences": "fk_reward.cli.preferences",
}
"""Name of the command -> module."""


class LazyBenchmarks(TyperGroup):
    """A group of commands that imports a benchmark only when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the benchmarks."""
        return list(BENCHMARKS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Command of one benchmark, None for an unknown name."""
        if cmd_name not in BENCHMARKS:
            return None
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(import_module(BENCHMARKS[cmd_name]).main)
        return typer.main.get_command(single)


benchmark_app = typer.Typer(cls=LazyBenchmarks, help="Measure the sampler and its rewards.", no_args_is_help=True)
