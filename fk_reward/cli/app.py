"""`fk-reward`: its commands, and how mistakes of the user are reported by all of them.

Whatever is slow to import is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownOptionError

from fk_reward.cli.benchmark import benchmark, run_typer
from fk_reward.cli.convert import convert
from fk_reward.cli.demo import demo
from fk_reward.cli.errors import clean_errors
from fk_reward.cli.generate import generate
from fk_reward.cli.geneval import geneval
from fk_reward.cli.hard_negatives import hard_negatives
from fk_reward.cli.mjbench import mjbench
from fk_reward.cli.options import named_search, other_searches, with_options
from fk_reward.cli.plan import plan
from fk_reward.cli.rewards import rewards
from fk_reward.cli.score import score
from fk_reward.cli.train import train, trainable_share
from fk_reward.terminal import tolerate_any_text
from fk_reward.version import __version__


def _geneval(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run GenEval: unsteered, best of K and steered images, judged and compared."""
    run_typer("geneval", geneval, arguments)


def _mjbench(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Measure a reward on MJ-Bench: accuracy with and without ties, by subset, beside published results."""
    run_typer("mjbench", mjbench, arguments)


COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "score": score,
    "rewards": rewards,
    "plan": plan,
    "train": train,
    "trainable-share": trainable_share,
    "convert": convert,
    "hard-negatives": hard_negatives,
    "demo": demo,
    "geneval": _geneval,
    "mjbench": _mjbench,
    "benchmark": benchmark,
}
"""Name -> function."""

SEARCHING = ("generate",)
"""Commands whose options depend on `--search`."""

RAW = ("train", "benchmark", "geneval", "mjbench")
"""Commands that read their own flags, `--help` among them."""

INSTALL_COMPLETION = "--install-completion"


def main(tokens: Sequence[str] | None = None) -> None:
    """Run a command line.

    Args:
        tokens: what stands behind `fk-reward`; that of this process if not given.

    Raises:
        SystemExit: with code 2 after a mistake of the user, which was reported on the error stream; with the code of
            the command where it has one.
    """
    tokens = sys.argv[1:] if tokens is None else list(tokens)
    tolerate_any_text()
    with clean_errors():
        command, bound = _parsed(tokens)
        command(*bound.args, **bound.kwargs)


def build_app(tokens: Sequence[str] = ()) -> App:
    """The application for a command line: the command that it names has its options, the others only their names.

    Args:
        tokens: the command line; with `--install-completion`, which needs all options, every command has them.
    """
    app = App(
        name="fk-reward",
        help="Reward-guided inference-time scaling for Diffusers.",
        version=f"fk-reward {__version__}",
        # No --no-... and --empty-... beside each flag and list; the last of several values holds, so that a script can
        # add "$@" to its own options.
        default_parameter=Parameter(negative=(), allow_repeating=True),
    )
    for name, command in COMMANDS.items():
        named = bool(tokens) and tokens[0] in (name, INSTALL_COMPLETION)
        flags = [] if name in RAW else ["--help", "-h"]
        app.command(with_options(command, tokens) if named else command, name=name, help_flags=flags, version_flags=[])
    app.register_install_completion_command(name=INSTALL_COMPLETION)
    return app


def _parsed(tokens: Sequence[str]) -> tuple[Callable[..., Any], Any]:
    """The command and its arguments.

    Raises:
        ValueError: the command line cannot be read.
    """
    try:
        command, bound, _ = build_app(tokens).parse_args(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ValueError(_usage_message(error, tokens)) from error
    return command, bound


def _usage_message(error: CycloptsError, tokens: Sequence[str]) -> str:
    """What is wrong with the command line; an option of another search is no misspelling."""
    if isinstance(error, UnknownOptionError) and tokens[0] in SEARCHING:
        option = (error.token.keyword or error.token.value).partition("=")[0]
        if searches := other_searches(option):
            return f"Search {named_search(tokens)!r} has no setting {option}; {', '.join(searches)} has: add --search."
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        name = error.keyword or error.argument.name
        typed = name in tokens
        return f"{name} needs a value." if typed else f"Missing {name}; --help says what it is."
    return str(error).strip()
