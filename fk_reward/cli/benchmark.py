"""`fk-reward benchmark ...`: each benchmark is a module with a `main` whose parameters are the options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

from cyclopts import Parameter

from fk_reward.terminal import TextTable
from fk_reward.text import did_you_mean

BENCHMARKS: dict[str, str] = {
    "preferences": "fk_reward.cli.preferences",
}
"""Name of the command -> module."""


def benchmark(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Measure the sampler and its rewards.

    Args:
        arguments: Name of a benchmark, and its options; --help shows them.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        _list_benchmarks()
        return
    name, *options = arguments
    if name not in BENCHMARKS:
        raise ValueError(f"No such command {name!r}.{did_you_mean(name, BENCHMARKS)}")
    _run(name, options)


def _list_benchmarks() -> None:
    table = TextTable("fk-reward benchmark NAME [OPTIONS]", show_header=False)
    table.add_column("name", no_wrap=True)
    table.add_column("module")
    for name, module in BENCHMARKS.items():
        table.add_row(name, module)
    table.print()


def _run(name: str, options: list[str]) -> None:
    run_typer(f"benchmark {name}", import_module(BENCHMARKS[name]).main, options)


def run_typer(name: str, function: Callable[..., Any], options: Sequence[str]) -> None:
    """Run a function whose parameters are annotated for typer."""
    import typer

    mistakes = typer.BadParameter.__mro__[2]  # ClickException, of the click that typer brings

    single = typer.Typer(add_completion=False)
    single.command(name)(function)
    try:
        code = typer.main.get_command(single).main(list(options), prog_name=f"fk-reward {name}", standalone_mode=False)
    except mistakes as error:
        raise ValueError(error.format_message()) from error
    if isinstance(code, int) and code:
        raise SystemExit(code)
