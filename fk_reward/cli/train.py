"""`fk-reward train` and `fk-reward trainable-share`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import cleandoc
from typing import Annotated

from cyclopts import Parameter

from fk_reward.terminal import TextTable, log_handler, write_document
from fk_reward.value_checks import whole_number

HELP = frozenset(("--help", "-h"))
SWITCH = Parameter(negative="--no-cross-attention")


def train(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Train a LLaVA-Reward on preference pairs or labelled images.

    Settings come from a YAML file, from flags, or from both, where flags win: those of RewardArguments (--backbone,
    --dimension, --train_data, ...) and of transformers' TrainingArguments (--output_dir, --num_train_epochs, ...);
    --list-flags shows all of them with their defaults. To use several GPUs:
    accelerate launch --multi_gpu -m fk_reward.cli train FILE.yaml

    Args:
        arguments: [FILE.yaml] [--FLAG VALUE]...
    """
    if HELP.intersection(arguments):
        write_document(f"Usage: fk-reward train [FILE.yaml] [--FLAG VALUE]...\n\n{cleandoc(train.__doc__ or '')}")
        return
    with _progress_on_stderr():
        from fk_reward.training.arguments import TrainingArgumentParser, parse_arguments
        from fk_reward.training.run import make_trainer, run_training

        if "--list-flags" in arguments:
            write_document(TrainingArgumentParser().format_help())
            return
        reward, training = parse_arguments(list(arguments))
        trainer = make_trainer(reward, training)
        metrics = run_training(trainer, reward, training)
    if trainer.is_world_process_zero():
        _show(metrics, training.output_dir)


def trainable_share(*, lora_rank: int = 128, cross_attention: Annotated[bool, SWITCH] = True) -> None:
    """Count what is trained of the official backbones at their real sizes; needs neither weights nor memory.

    Args:
        lora_rank: Rank of LoRA.
        cross_attention: With or without SkipCA.
    """
    whole_number("--lora-rank", lora_rank, minimum=0)
    from fk_reward.rewards.llava_reward.backbones.base import backbone_specs
    from fk_reward.training.trainable import full_size_share

    table = TextTable(f"LoRA rank {lora_rank}, SkipCA {'on' if cross_attention else 'off'}")
    table.add_column("backbone")
    for column in ("trained", "all", "share"):
        table.add_column(column, right=True)
    for name in [name for name, spec in backbone_specs().items() if spec.build is not None]:
        count = full_size_share(name, lora_rank=lora_rank, cross_attention=cross_attention)
        table.add_row(name, f"{count.trained:,}", f"{count.total:,}", f"{count.share:.2%}")
    table.print()


def _show(metrics: dict[str, float], folder: str) -> None:
    table = TextTable(f"written: {folder}", show_header=False)
    table.add_column("measure")
    table.add_column("value", right=True)
    for name, value in metrics.items():
        table.add_row(name.removeprefix("eval_"), f"{value:.4f}")
    table.print()


@contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """What the library logs goes to the error stream, from the first of several processes."""
    logger = logging.getLogger("fk_reward")
    handler = log_handler()
    level = logger.level
    if os.environ.get("RANK", "0") == "0":
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
