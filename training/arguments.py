"""Settings of a training: transformers' `TrainingArguments` with this reward's defaults, and those of the reward."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import docstring_parser
from transformers import HfArgumentParser, TrainingArguments

from fk_reward.documents import parse_yaml
from fk_reward.rewards.llava_reward.backbones.base import Backbone
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.objective import find_objective

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class LlavaRewardTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the defaults of LLaVA-Reward (arXiv 2507.21391 and its official code).

    By default, the validation set is measured and a checkpoint written after each epoch, and the most accurate weights
    are kept.

    Attributes:
        learning_rate: The peak learning rate.
        lr_scheduler_type: Name of a schedule of transformers.
        warmup_steps: Steps of warm-up; below 1 a share of all steps.
        adam_beta2: Second beta of AdamW.
        logging_steps: Log every so many steps; below 1 a share of all steps.
        eval_strategy: When to measure the validation set: no, steps or epoch.
        save_strategy: When to write a checkpoint: no, steps, epoch or best.
        save_total_limit: Keep at most this many checkpoints, the best one among them.
        load_best_model_at_end: Keep the weights that were best on the validation set.
        metric_for_best_model: What decides which weights are best: accuracy, accuracy_without_ties, loss, ...
        restore_callback_states_from_checkpoint: Let early stopping continue its count after a resume.
        ddp_find_unused_parameters: Look for weights without a gradient in each step of several processes.
        remove_unused_columns: Drop columns that the model does not take; for tables of `datasets`.
        logging_nan_inf_filter: Hide losses that are not finite from the log; here they stop the training anyway.
        margin_scale: How much the reward of a chosen image must lead, for each unit of its pair's rating gap.
        soft_targets: Rating gap at which a chosen image should win with odds of e, instead of always; 0 for always.

    Raises:
        ValueError: for a negative margin_scale or soft_targets, both of them, and as transformers' class.

    Example:
        >>> arguments = LlavaRewardTrainingArguments(output_dir="outputs", use_cpu=True, report_to="none")
        >>> arguments.learning_rate, arguments.lr_scheduler_type.value, arguments.warmup_steps
        (0.0002, 'cosine', 0.03)
    """

    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    adam_beta2: float = 0.95
    logging_steps: float = 10
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "accuracy"
    restore_callback_states_from_checkpoint: bool = True
    # Every trained weight is used in every forward, so the search would only cost time.
    ddp_find_unused_parameters: bool | None = False
    # The Trainer would look for the columns of a table; the data here are records.
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    margin_scale: float = 0.0
    soft_targets: float = 0.0

    def __post_init__(self) -> None:
        for name in ("margin_scale", "soft_targets"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.margin_scale and self.soft_targets:
            raise ValueError("A rating gap is a margin or a probability: set margin_scale or soft_targets, not both.")
        super().__post_init__()


@dataclass(kw_only=True)
class NoiseBandArguments:
    """What an adapter for predictions of a noise level is trained with; nothing of it for any other.

    Attributes:
        noise_band: Lowest and highest noise level that is judged, 0 (finished) to 1; with a dimension as alignment@0.5.
        level_in_prompt: Write the noise level before the prompt, for one adapter that judges all levels.
        teacher: Recorded reward whose finished scores order pairs of predictions; the first recorded one by default.
        teacher_scores: File with scores of finished images by people or others: rows of place, seed and score.
        calibrate_to: Recorded reward in whose unit the adapter scores at the end; the teacher by default.
        num_pairs: Pairs of predictions that are drawn, in one epoch.
        curriculum: Share of the training in which the noise level rises from finished images to the band.
        clean_fraction: Share of pairs of finished images all the way; 1 is the control that sees no prediction.
        min_gap: Smallest gap of finished scores of a pair, in their spread within a prompt.

    Raises:
        ValueError: for settings of a band without one.
    """

    noise_band: list[float] | None = None
    level_in_prompt: bool = False
    teacher: str | None = None
    teacher_scores: str | None = None
    calibrate_to: str | None = None
    num_pairs: int = 20_000
    curriculum: float = 0.5
    clean_fraction: float = 0.25
    min_gap: float = 0.0

    def _check_band(self) -> None:
        asked = [item.name for item in fields(NoiseBandArguments) if getattr(self, item.name) != item.default]
        if self.noise_band is None and asked:
            raise ValueError(f"{', '.join(asked)} belong to an adapter for predictions: give its noise_band, too.")
        if self.noise_band is not None and len(self.noise_band) != 2:
            raise ValueError(f"noise_band should be two numbers, the lowest and the highest, got {self.noise_band}.")


@dataclass(kw_only=True)
class RewardArguments(NoiseBandArguments):
    """The reward to train, its backbone and its data.

    Attributes:
        backbone: Hub id or folder of the multimodal LLM.
        dimension: What the reward judges: alignment, fidelity, safety, overall, ...
        train_data: File with pairs or labelled images: JSON, JSON lines or Parquet; for a noise band folders of
            fk-reward record --keep-predictions, with commas between them.
        validation_data: The same for validation; by default a part of the training data.
        validation_fraction: Share of the training records for validation, without a validation file.
        image_root: Folder that relative paths of images start from; by default the data file's.
        skip_bad_rows: Drop rows that cannot be read, with a warning that counts them, instead of stopping.
        objective: bradley-terry or general-preference for pairs, binary for labelled images or pairs.
        temperature: Divisor of reward differences in the loss.
        value_head_dim: Size of the raw output; by default 2 for a general preference, else 1.
        cross_attention: Whether there is a SkipCA.
        train_projector: Whether the visual projector is trained.
        lora_rank: Rank of LoRA on all linear layers of the language model; 0 for no LoRA.
        lora_alpha: Scale of LoRA, divided by the rank.
        lora_dropout: Share of LoRA's inputs that is dropped in training.
        backbone_dtype: float32, bfloat16 or float16 for the frozen weights; trained weights are always float32.
        attn_implementation: sdpa, eager, flash_attention_2, ...
        num_crops: Phi-3.5-vision: crops of 336 pixels an image at most; 16 by default.
        min_pixels: Qwen2.5-VL: enlarge images of fewer pixels.
        max_pixels: Qwen2.5-VL: make images of more pixels smaller.
        early_stopping_patience: Stop after this many validations without improvement; by default never.
        resume: Continue from the last complete checkpoint in output_dir, if there is one.
        initial_adapter: Adapter that the training begins with, and whose objective, head and LoRA it keeps; by default
            it begins with a new one.

    Raises:
        ValueError: for a value outside of these.

    Example:
        >>> RewardArguments(backbone="tiny", dimension="safety", train_data="pairs.json", validation_fraction=1.5)
        Traceback (most recent call last):
        ValueError: validation_fraction must be in [0, 1), got 1.5.
    """

    backbone: str
    dimension: str
    train_data: str
    validation_data: str | None = None
    validation_fraction: float = 0.05
    image_root: str | None = None
    skip_bad_rows: bool = False
    objective: str = "bradley-terry"
    temperature: float = 0.1
    value_head_dim: int | None = None
    cross_attention: bool = True
    train_projector: bool = True
    lora_rank: int = 128
    lora_alpha: float = 256
    lora_dropout: float = 0.05
    backbone_dtype: str = "bfloat16"
    attn_implementation: str = "sdpa"
    num_crops: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    early_stopping_patience: int | None = None
    resume: bool = False
    initial_adapter: str | None = None

    def __post_init__(self) -> None:
        self._check_band()
        if self.backbone_dtype not in DTYPES:
            raise ValueError(f"backbone_dtype must be one of {', '.join(DTYPES)}, got {self.backbone_dtype!r}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}.")

    def reward_config(self, backbone: Backbone) -> LlavaRewardConfig:
        """The configuration of the dimension on a backbone, as the checkpoint will hold it.

        Raises:
            ValueError: for settings that contradict each other.
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
            noise_band=None if self.noise_band is None else (self.noise_band[0], self.noise_band[1]),
            level_in_prompt=self.level_in_prompt,
        )


class TrainingArgumentParser(HfArgumentParser):
    """transformers' parser of dataclasses, for the settings of a training; mistakes raise ValueError."""

    def __init__(self) -> None:
        super().__init__(
            (RewardArguments, LlavaRewardTrainingArguments),
            prog="fk-reward train",
            usage="%(prog)s [FILE.yaml] [--FLAG VALUE ...]",
            allow_abbrev=False,  # a misspelt flag must not pass for the beginning of another
        )
        # One source for each help text: the class docstring. argparse formats help with %, so "%" is doubled.
        texts = {
            documented.arg_name: documented.description or ""
            for kind in self.dataclass_types
            for base in (*(base for base in kind.__bases__ if base.__module__ == __name__), kind)
            for documented in docstring_parser.parse(inspect.cleandoc(base.__doc__ or "")).params
        }
        for action in self._actions:
            if action.dest in texts:
                action.help = " ".join(texts[action.dest].split()).replace("%", "%%")

    def error(self, message: str) -> NoReturn:
        """Raise the message; argparse would print all flags and exit."""
        raise ValueError(message)


def parse_arguments(arguments: Sequence[str]) -> tuple[RewardArguments, LlavaRewardTrainingArguments]:
    """Read settings.

    Args:
        arguments: optionally the name of a YAML file, a mapping of fields to values, and then flags, which win over
            it: `["run.yaml", "--learning_rate", "1e-4"]`. Fields are those of the two dataclasses. The entry
            `extends` of a file names another one, relative to its folder, whose fields it overrides.

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
        # As if typed, so that the parser checks names and values of a file, too.
        settings = _read_settings(Path(flags[0]))
        flags[:1] = [flag for name, value in settings.items() for flag in _flags(name, value)]
    reward, training = TrainingArgumentParser().parse_args_into_dataclasses(flags, look_for_args_file=False)
    return reward, training


def _read_settings(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Fields of a file over those of the file that it extends; `extending` are the files that led here."""
    if path.resolve() in extending:
        raise ValueError(f"{path} extends itself, by way of {', '.join(file.name for file in extending)}.")
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a mapping of fields to values, got {type(settings).__name__}.")
    settings = {str(name): value for name, value in settings.items()}
    base = settings.pop("extends", None)
    if base is None:
        return settings
    return {**_read_settings(path.parent / str(base), (*extending, path.resolve())), **settings}


def _flags(name: str, value: Any) -> Iterator[str]:
    """A field as a user would type it; an empty one keeps its default."""
    if isinstance(value, list):
        yield from (f"--{name}", *map(str, value))
    elif value is not None:
        yield f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
