"""Settings of a training: transformers' own with this reward's defaults, and what is to be trained on what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from fk_reward.documents import parse_yaml
from fk_reward.rewards.llava_reward.backbones.base import Backbone
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.objective import find_objective

DTYPES = ("float32", "bfloat16", "float16")


def _default(value: Any, text: str) -> Any:
    return field(default=value, metadata={"help": text})


@dataclass
class LlavaRewardTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the defaults of LLaVA-Reward (arXiv 2507.21391 and its official code).

    Learning rate 2e-4, cosine with 3 % warm-up, AdamW with beta2 = 0.95. A validation set is expected: it is measured
    and a checkpoint is written after each epoch, and the weights that were the most accurate are kept. A loss that is
    not finite ends the run.

    Attributes:
        margin_scale: how much the reward of a chosen image must lead, for each unit of the rating gap of a pair.

    Example:
        >>> arguments = LlavaRewardTrainingArguments(output_dir="outputs", use_cpu=True, report_to="none")
        >>> arguments.learning_rate, arguments.lr_scheduler_type.value, arguments.warmup_steps
        (0.0002, 'cosine', 0.03)
    """

    learning_rate: float = _default(2e-4, "The peak learning rate.")
    lr_scheduler_type: str = _default("cosine", "Name of a schedule of transformers.")
    warmup_steps: float = _default(0.03, "Steps of warm-up; below 1 a share of all steps.")
    adam_beta2: float = _default(0.95, "Second beta of AdamW.")
    logging_steps: float = _default(10, "Log every so many steps; below 1 a share of all steps.")
    eval_strategy: str = _default("epoch", "When to measure the validation set: no, steps or epoch.")
    save_strategy: str = _default("epoch", "When to write a checkpoint: no, steps, epoch or best.")
    save_total_limit: int | None = _default(2, "Keep so many checkpoints, the best one among them.")
    load_best_model_at_end: bool = _default(True, "Keep the weights that were best on the validation set.")
    metric_for_best_model: str | None = _default("accuracy", "accuracy, accuracy_without_ties, loss, ...")
    restore_callback_states_from_checkpoint: bool = _default(True, "Early stopping goes on counting after a resume.")
    ddp_find_unused_parameters: bool | None = _default(False, "Each trained weight is used in each forward.")
    remove_unused_columns: bool = _default(False, "Of a table of `datasets`; rewards read objects of their own.")
    logging_nan_inf_filter: bool = _default(False, "Hide losses that are not finite; here they end the run.")
    margin_scale: float = _default(0.0, "Lead that a chosen image needs, for each unit of its pair's rating gap.")

    def __post_init__(self) -> None:
        if not self.margin_scale >= 0:
            raise ValueError(f"margin_scale must not be negative, got {self.margin_scale}.")
        super().__post_init__()


@dataclass(kw_only=True)
class RewardArguments:
    """What is trained on what; each field is described in its help, which the command line shows.

    Raises:
        ValueError: for a value outside of what the help says.

    Example:
        >>> RewardArguments(backbone="tiny", dimension="safety", train_data="pairs.json", validation_fraction=1.5)
        Traceback (most recent call last):
        ValueError: validation_fraction must be in [0, 1), got 1.5.
    """

    backbone: str = field(metadata={"help": "Hub id or folder of the multimodal LLM."})
    dimension: str = field(metadata={"help": "What the reward judges: alignment, fidelity, safety, overall, ..."})
    train_data: str = field(metadata={"help": "File with pairs or labelled images: JSON, JSONL or Parquet."})
    validation_data: str | None = _default(None, "The same for validation; by default a part of the training data.")
    validation_fraction: float = _default(0.05, "Share of the prompts for validation, where there is no such file.")
    image_root: str | None = _default(None, "Folder that the paths of images start from; by default the data file's.")
    skip_bad_rows: bool = _default(False, "Drop rows that cannot be read, and count them, in place of an error.")
    objective: str = _default("bradley-terry", "bradley-terry, general-preference, or binary for labelled images.")
    temperature: float = _default(0.1, "Divisor of reward differences in the loss.")
    value_head_dim: int | None = _default(
        None, "Size of the raw output; by default 2 for a general preference, else 1."
    )
    cross_attention: bool = _default(True, "Whether there is a SkipCA.")
    train_projector: bool = _default(True, "Whether the visual projector is trained.")
    lora_rank: int = _default(128, "Rank of LoRA on all linear layers of the language model; 0 for none.")
    lora_alpha: float = _default(256, "Scale of LoRA, divided by the rank.")
    lora_dropout: float = _default(0.05, "Share of LoRA's inputs that is dropped in training.")
    backbone_dtype: str = _default("bfloat16", "float32, bfloat16 or float16; what is trained is float32 always.")
    attn_implementation: str = _default("sdpa", "sdpa, eager, flash_attention_2, ...")
    num_crops: int | None = _default(None, "Phi-3.5-vision: crops of 336 pixels an image at most; 16 by default.")
    min_pixels: int | None = _default(None, "Qwen2.5-VL: enlarge images of fewer pixels.")
    max_pixels: int | None = _default(None, "Qwen2.5-VL: make images of more pixels smaller.")
    early_stopping_patience: int | None = _default(None, "Stop after so many validations without a better one.")
    resume: bool = _default(False, "Go on from the last complete checkpoint in output_dir, if there is one.")

    def __post_init__(self) -> None:
        if self.backbone_dtype not in DTYPES:
            raise ValueError(f"backbone_dtype must be one of {', '.join(DTYPES)}, got {self.backbone_dtype!r}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}.")

    def reward_config(self, backbone: Backbone) -> LlavaRewardConfig:
        """The configuration of the dimension on a backbone, as it will stand in the checkpoint.

        Raises:
            ValueError: for settings that do not go together.
        """
        dim = find_objective(self.objective).default_outputs
        return LlavaRewardConfig(
            dimension=self.dimension,
            backbone=backbone.model_type,
            base_model=self.backbone,
            objective=self.objective,
            value_head_dim=dim if self.value_head_dim is None else self.value_head_dim,
            cross_attention=self.cross_attention,
            temperature=self.temperature,
            backbone_options=backbone.options,
        )


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
