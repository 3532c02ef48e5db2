"""Run the `main` of a script of examples/ as the command line does."""

from __future__ import annotations

from tests.command_line import run_script


def invoke(main, *arguments, code=0):
    """Run it with these options; what it wrote."""
    result = run_script(main, *arguments)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output
