"""Run the `main` of a script of examples/ as the command line does."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from fk_reward.cli.errors import CleanGroup


def invoke(main, *arguments, code=0):
    """Run it with these options; its output, spaces and line breaks as one space."""
    app = typer.Typer(cls=CleanGroup, add_completion=False)
    app.command("script")(main)
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, ["script", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output
