"""The trainer of LLaVA-Reward: transformers' own, with this reward's loss, measures and checkpoints."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from fk_reward.durable_files import naming_path
from fk_reward.rewards.llava_reward.checkpoint import CheckpointMismatchError, load_own_checkpoint
from fk_reward.training.arguments import LlavaRewardTrainingArguments
from fk_reward.training.checkpoints import STATE_FILE
from fk_reward.training.dataset import PreferenceDataset
from fk_reward.training.metrics import answer_metrics
from fk_reward.training.trainable import TrainableReward, trainable_share

logger = logging.getLogger(__name__)


class LlavaRewardTrainer(Trainer):
    """Trains one dimension; loop, precision, distribution, logging and resuming are transformers'.

    A batch comes from a collator of `fk_reward.training.dataset`: `images` and `prompts` of all rows, for pairs all
    chosen rows before all rejected ones, so that both go through one forward; and `margin` or `labels`. The loss is
    that of the dimension's objective.

    Evaluation gives `loss`, `accuracy`, `accuracy_without_ties`, `ties` and `calibration_error` over the complete set.

    Checkpoints hold the trained weights in fk-reward's own format, so that `load_reward("llava-reward", adapter=...)`
    reads every one of them, and the Trainer's state. In one process, a run that is resumed from a checkpoint ends with
    the same weights, bit for bit, as one that was never interrupted.

    Args:
        model: the dimension to train.
        args: settings.
        data_collator: makes batches.
        train_dataset: pairs, or labelled images for a binary objective.
        eval_dataset: the same for validation.
        callbacks: such as transformers' `EarlyStoppingCallback`.

    Raises:
        ValueError: when one process would drive several GPUs; start it with `accelerate launch`.
    """

    def __init__(
        self,
        model: TrainableReward,
        args: LlavaRewardTrainingArguments,
        *,
        data_collator: Callable[[list[Any]], dict[str, Any]],
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        if args.n_gpu > 1:  # DataParallel splits tensors along their first axis: here, the channels of each image
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs: start one process per GPU with `accelerate launch`, or name one "
                "GPU in CUDA_VISIBLE_DEVICES."
            )
        self.reward = model
        self.loss_is_scaled_for_ga = False  # losses are means of a batch: the Trainer divides by the accumulation steps
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=list(callbacks),
            compute_metrics=self._metrics,
        )
        if self.is_world_process_zero():
            logger.info("%s", trainable_share(model))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; from a checkpoint that has all steps already, nothing is trained, and its weights are the result.

        Signature as in transformers.
        """
        # transformers' loop checks for the end after each step only, so it would train one step more.
        if isinstance(resume_from_checkpoint, str | os.PathLike):
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, STATE_FILE)))
            if state.global_step >= self.planned_steps:
                return self._finish_at(str(resume_from_checkpoint), state)
        return super().train(resume_from_checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)

    @property
    def planned_steps(self) -> int:
        """Steps of the optimizer in a complete training, by `max_steps` or the number of epochs."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        updates = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        return math.ceil(self.args.num_train_epochs * max(updates, 1))

    def _finish_at(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        logger.info("%s has all %d steps: nothing is trained.", checkpoint, self.planned_steps)
        self.reward.restore(load_own_checkpoint(checkpoint))
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(state.global_step, math.nan, {})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss on one batch, its mean; signature as in transformers.

        Raises:
            FloatingPointError: when it is not finite.
        """
        items = self.reward.objective.items(model(inputs["images"], inputs["prompts"]))
        loss = self._loss(items, self._targets(inputs))
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss is {loss.item()} after step {self.state.global_step}; try a lower learning rate, or float32."
            )
        return (loss, items) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """Raw outputs of a batch and their targets; `_metrics` computes the loss over the complete set."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            items = self.reward.objective.items(model(inputs["images"], inputs["prompts"]))
        targets = self._targets(inputs)
        # Zeros, not None: the Trainer computes no metrics without labels.
        return None, items, items.new_zeros(len(items)) if targets is None else targets

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """In the order of the dataset where that is a curriculum; else transformers' sampler."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, PreferenceDataset) and dataset.is_ordered:
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _targets(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if not self.reward.objective.takes_pairs:
            return inputs.get("labels")
        if not self._reads_gaps:
            return None
        gaps = inputs.get("margin")
        if gaps is None:
            name = "soft_targets" if self.args.soft_targets else "margin_scale"
            raise ValueError(f"{name} is {getattr(self.args, name)}, but some of the pairs have no margin.")
        return torch.sigmoid(gaps / self.args.soft_targets) if self.args.soft_targets else self.args.margin_scale * gaps

    @property
    def _reads_gaps(self) -> bool:
        return bool(self.args.margin_scale or self.args.soft_targets)

    def _loss(self, items: Tensor, targets: Tensor | None) -> Tensor:
        objective, temperature = self.reward.objective, self.reward.reward_config.temperature
        if self.args.soft_targets and targets is not None:
            return objective.soft_loss(items, targets, temperature=temperature)
        return objective.loss(items, targets, temperature=temperature)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        objective, temperature = self.reward.objective, self.reward.reward_config.temperature
        items, targets = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
        logits = objective.logits(items, temperature=temperature)
        truths = torch.ones(len(logits), dtype=torch.bool) if objective.takes_pairs else targets.bool()
        without_targets = objective.takes_pairs and not self._reads_gaps
        loss = self._loss(items, None if without_targets else targets)
        return {"loss": loss.item(), **answer_metrics(logits, truths)}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            self.reward.checkpoint(state_dict).save(folder, overwrite=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.reward.restore(load_own_checkpoint(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self._is_sharded:
            super()._load_best_model()
            return
        found = Path(self.state.best_model_checkpoint)
        moved = Path(self.args.output_dir, found.name)  # `output_dir` may have been renamed since
        best = moved if moved.is_dir() else found
        try:
            self.reward.restore(load_own_checkpoint(best))
        except CheckpointMismatchError:
            raise
        except (OSError, ValueError) as error:
            # The training is over: an error here would lose the last weights, too.
            logger.warning("The weights of the last step are kept, since the best ones are damaged. %s", error)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        try:
            with naming_path(folder):
                super()._save_checkpoint(model, trial)
        except RuntimeError as error:  # on a full disk, torch.save raises one that names neither disk nor file
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise OSError(f"{folder} cannot be written; is the disk full? ({str(error).splitlines()[0]})") from error

    @property
    def _is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed hold the weights; they write and read their own files of a checkpoint."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled
