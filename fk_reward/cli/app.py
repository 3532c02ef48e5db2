"""`fk-reward`: its commands, and how mistakes of the user are reported by all of them.

Whatever is slow to import is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownOptionError, ValidationError

from fk_reward.cli.benchmark_rewards import benchmark_rewards
from fk_reward.cli.cache import cache_apply, cache_evolve, cache_show
from fk_reward.cli.compare import compare
from fk_reward.cli.convert import convert
from fk_reward.cli.demo import demo
from fk_reward.cli.doctor import doctor
from fk_reward.cli.generate import generate
from fk_reward.cli.geneval import geneval
from fk_reward.cli.hard_negatives import hard_negatives
from fk_reward.cli.mjbench import mjbench
from fk_reward.cli.noise_accuracy import noise_accuracy
from fk_reward.cli.options import DEFAULT_SEARCH, named_searches, other_searches, with_options
from fk_reward.cli.pair_accuracy import pair_accuracy
from fk_reward.cli.plan import plan
from fk_reward.cli.preferences import preferences
from fk_reward.cli.prices import prices
from fk_reward.cli.record import record
from fk_reward.cli.replay import replay
from fk_reward.cli.rewards import rewards
from fk_reward.cli.safety import safety
from fk_reward.cli.scaling import scaling
from fk_reward.cli.score import score
from fk_reward.cli.skills import skills_draw, skills_merge, skills_prompts, skills_train
from fk_reward.cli.train import train, trainable_share
from fk_reward.cli.ui import ui
from fk_reward.lazy import defer_import
from fk_reward.terminal import drop_foreign_hints, say_error, tolerate_any_text
from fk_reward.version import __version__

COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "score": score,
    "rewards": rewards,
    "doctor": doctor,
    "plan": plan,
    "train": train,
    "trainable-share": trainable_share,
    "convert": convert,
    "hard-negatives": hard_negatives,
    "demo": demo,
    "geneval": geneval,
    "benchmark": geneval,
    "benchmark rewards": benchmark_rewards,
    "record": record,
    "replay": replay,
    "compare": compare,
    "scaling": scaling,
    "safety": safety,
    "mjbench": mjbench,
    "preferences": preferences,
    "pair-accuracy": pair_accuracy,
    "noise-accuracy": noise_accuracy,
    "prices": prices,
    "skills prompts": skills_prompts,
    "skills draw": skills_draw,
    "skills train": skills_train,
    "skills merge": skills_merge,
    "cache evolve": cache_evolve,
    "cache apply": cache_apply,
    "cache show": cache_show,
    "ui": ui,
}
"""Name -> function. A name of two words is a command of a group, which `GROUPS` describes, or of another command."""

GROUPS: dict[str, str] = {
    "skills": "Learn skill-specific LoRA experts of a text-to-image model, and merge them.",
    "cache": "Caching schedules: parts of a denoiser that are not computed at every step.",
}
"""First word of such names -> what its commands are about."""

SEARCHING = ("generate", "plan", "geneval", "benchmark", "scaling", "safety")
"""Commands whose options depend on `--search`."""

RAW = ("train",)
"""Commands that read their own flags, `--help` among them."""

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
"""What the library raises on wrong input, absent or unusable files, missing packages and diverging trainings."""
SHOW_TRACEBACK = "FK_REWARD_TRACEBACK"
"""Environment variable: any value keeps the tracebacks."""
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

INSTALL_COMPLETION = "--install-completion"

# No --no-... and --empty-... beside each flag and list; the last of several values holds, so that a script can add "$@"
# to its own options.
_EVERYWHERE = Parameter(negative=(), allow_repeating=True)


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
    drop_foreign_hints()
    defer_import("torch")  # the options of a search stand in modules that compute with it
    with clean_errors():
        command, bound = _parsed(tokens, build_app(tokens))
        command(*bound.args, **bound.kwargs)


def run_script(script: Callable[..., Any], tokens: Sequence[str] | None = None) -> None:
    """Run a function of a script as the commands are run: its keywords are options, its docstring their help.

    Args:
        script: a function.
        tokens: the command line; that of this process if not given.

    Raises:
        SystemExit: as for `main`.
    """
    tokens = sys.argv[1:] if tokens is None else list(tokens)
    tolerate_any_text()
    with clean_errors():
        app = App(name=sys.argv[0], version_flags=[], default_parameter=_EVERYWHERE)
        app.default(with_options(script, tokens))
        command, bound = _parsed(tokens, app)
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
        default_parameter=_EVERYWHERE,
    )
    named = command_name(tokens)
    groups = {name: App(name=name, help=text, version_flags=[]) for name, text in GROUPS.items()}
    groups |= {name: App(name=name, version_flags=[]) for name in COMMANDS if _has_commands(name)}
    for group in groups.values():
        app.command(group)
    for name, command in COMMANDS.items():
        *first, last = name.split()
        made = with_options(command, tokens) if name == named or list(tokens[:1]) == [INSTALL_COMPLETION] else command
        if name in groups:
            groups[name].default(made)
            continue
        flags = [] if name in RAW else ["--help", "-h"]
        (groups[first[0]] if first else app).command(made, name=last, help_flags=flags, version_flags=[])
    app.register_install_completion_command(name=INSTALL_COMPLETION)
    return app


def command_name(tokens: Sequence[str]) -> str:
    """The command that a command line names; empty where it names none.

    Example:
        >>> command_name(["benchmark", "--suite", "shapes"]), command_name(["benchmark", "rewards", "--full-size"])
        ('benchmark', 'benchmark rewards')
    """
    names = (" ".join(tokens[:length]) for length in (2, 1))
    return next((name for name in names if name in COMMANDS), "")


def _has_commands(name: str) -> bool:
    """Whether a command has further commands below it."""
    return any(other.startswith(f"{name} ") for other in COMMANDS)


def _parsed(tokens: Sequence[str], app: App) -> tuple[Callable[..., Any], Any]:
    """The command and its arguments.

    Raises:
        ValueError: the command line cannot be read.
    """
    try:
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ValueError(_usage_message(error, tokens)) from error
    return command, bound


def _usage_message(error: CycloptsError, tokens: Sequence[str]) -> str:
    """What is wrong with the command line; an option of another search is no misspelling."""
    if isinstance(error, UnknownOptionError) and command_name(tokens) in SEARCHING:
        option = (error.token.keyword or error.token.value).partition("=")[0]
        if others := other_searches(option):
            names = named_searches(tokens) or [DEFAULT_SEARCH]
            asked = f"Search {names[0]!r} has" if len(names) == 1 else f"{' and '.join(map(repr, names))} have"
            verb = "has" if len(others) == 1 else "have"
            return f"{asked} no setting {option}; {', '.join(others)} {verb}: add --search."
    if isinstance(error, ValidationError) and error.exception_message:
        return error.exception_message  # which names the option and the value in its own words
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        name = error.keyword or error.argument.name
        typed = name in tokens
        return f"{name} needs a value." if typed else f"Missing {name}; --help says what it is."
    return str(error).strip()


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn the errors that the library raises on wrong input into one message and exit code 2.

    Other exceptions are defects of the program and keep their traceback; with `FK_REWARD_TRACEBACK=1` in the
    environment all do.

    Raises:
        SystemExit: with code 2, in place of one of `USER_ERRORS`, or of an error of a judge's endpoint.

    Example:
        >>> with clean_errors():
        ...     raise TypeError("a defect")
        Traceback (most recent call last):
        TypeError: a defect
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough; Python would fail once more when it flushes at exit
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        say_error("interrupted.")
        raise SystemExit(130) from error  # 128 + SIGINT, as shells say it
    except Exception as error:
        if not _is_mistake(error) or os.environ.get(SHOW_TRACEBACK):
            raise
        say_error(_message(error))
        raise SystemExit(2) from error


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, USER_ERRORS):
        return True
    from fk_reward.rewards.vlm_judge.engine import JudgeEndpointError

    return isinstance(error, JudgeEndpointError)


def _message(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _FULL:
        text += ". Make room and start the same command again."
    return text
