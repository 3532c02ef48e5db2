"""The commands of `fk-reward`. Whatever is slow to import is imported inside them, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from fk_reward.cli.benchmark import benchmark_app
from fk_reward.cli.convert import convert
from fk_reward.cli.demo import demo
from fk_reward.cli.errors import CleanGroup
from fk_reward.cli.generate import generate
from fk_reward.cli.geneval import geneval
from fk_reward.cli.hard_negatives import hard_negatives
from fk_reward.cli.mjbench import mjbench
from fk_reward.cli.plan import plan
from fk_reward.cli.rewards import rewards
from fk_reward.cli.score import score
from fk_reward.cli.train import RAW_ARGUMENTS, train, trainable_share
from fk_reward.terminal import tolerate_any_text
from fk_reward.version import __version__

app = typer.Typer(
    cls=CleanGroup,
    help="Reward-guided inference-time scaling for Diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(generate)
app.command()(score)
app.command()(rewards)
app.command()(plan)
app.command()(convert)
app.command()(hard_negatives)
app.command(context_settings=RAW_ARGUMENTS)(train)
app.command()(trainable_share)
app.command()(demo)
app.command()(mjbench)
app.command()(geneval)
app.add_typer(benchmark_app, name="benchmark")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"fk-reward {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Reward-guided inference-time scaling for Diffusers."""
    tolerate_any_text()
