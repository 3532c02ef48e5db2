"""Settings of a training from a YAML file and flags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from fk_reward.documents import parse_yaml
from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments


class TrainingArgumentParser(HfArgumentParser):
    """transformers' parser of dataclasses, for the settings of a training; mistakes raise ValueError."""

    def __init__(self) -> None:
        super().__init__(
            (RewardArguments, LlavaRewardTrainingArguments),
            prog="fk-reward train",
            usage="%(prog)s [FILE.yaml] [--FLAG VALUE ...]",
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the message; argparse would print all flags and leave the program."""
        raise ValueError(message)


def parse_arguments(arguments: Sequence[str]) -> tuple[RewardArguments, LlavaRewardTrainingArguments]:
    """Read settings.

    Args:
        arguments: perhaps the name of a YAML file, a mapping of fields to values, and then flags, which come after it
            and so win: `["run.yaml", "--learning_rate", "1e-4"]`. Fields are those of the two dataclasses. The entry
            `extends` of a file names another one, from the file's folder on, whose fields hold where it has none.

    Raises:
        OSError: when the file cannot be read.
        ValueError: for an unknown field, a value that does not fit, a field that is missing, or files that extend each
            other in a circle.

    Example:
        >>> flags = ["--backbone", "tiny", "--dimension", "safety", "--train_data", "labels.json", "--use_cpu"]
        >>> reward, training = parse_arguments([*flags, "--lora_rank", "8"])
        >>> reward.lora_rank, training.learning_rate
        (8, 0.0002)
    """
    flags = list(arguments)
    if flags and not flags[0].startswith("-"):
        flags[:1] = _read_flags(Path(flags[0]))
    reward, training = TrainingArgumentParser().parse_args_into_dataclasses(flags, look_for_args_file=False)
    return reward, training


def _read_flags(path: Path) -> list[str]:
    return [flag for name, value in _read_settings(path).items() for flag in _flags(name, value)]


def _read_settings(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Fields of a file over those of the file that it extends; `extending` are the files that led here."""
    if path.resolve() in extending:
        raise ValueError(f"{path} extends itself, by way of {', '.join(file.name for file in extending)}.")
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a mapping of fields to values, got {type(settings).__name__}.")
    settings = {str(name): value for name, value in settings.items()}
    base = settings.pop("extends", None)
    if base is None:
        return settings
    return {**_read_settings(path.parent / str(base), (*extending, path.resolve())), **settings}


def _flags(name: str, value: Any) -> Iterator[str]:
    """A field as it would be typed; an empty one is left at its default."""
    if isinstance(value, list):
        yield from (f"--{name}", *map(str, value))
    elif value is not None:
        yield f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
