"""The trainer of LLaVA-Reward: transformers' own, with this reward's loss, measures and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback

from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.training.arguments import LlavaRewardTrainingArguments
from fk_reward.training.metrics import answer_metrics
from fk_reward.training.objective import is_pairwise, items_of, objective_logits, objective_loss
from fk_reward.training.trainable import TrainableReward, trainable_share

logger = logging.getLogger(__name__)


class LlavaRewardTrainer(Trainer):
    """Trains one dimension; loop, precision, distribution, logging and resuming are transformers'.

    A batch is what a collator of `fk_reward.training.dataset` makes: `images` and `prompts` of all rows, for pairs all
    chosen rows before all rejected ones, so that both go through one forward; with `margin` or with `labels`. The loss
    is that of the dimension's objective.

    Evaluation gives `loss`, `accuracy`, `accuracy_without_ties`, `ties` and `calibration_error` over the whole set.

    Checkpoints hold what is trained, in fk-reward's own format, so that `load_reward("llava-reward", adapter=...)`
    reads every one of them, and the Trainer's state beside it. On one process, a run that goes on from a checkpoint
    ends with the same weights, bit for bit, as one that was never interrupted.

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
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs: start one process a GPU with `accelerate launch`, or name one "
                "GPU in CUDA_VISIBLE_DEVICES."
            )
        self.reward = model
        self.loss_is_scaled_for_ga = False  # losses are means of a batch
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
        items = items_of(model(inputs["images"], inputs["prompts"]), self.reward.reward_config)
        loss = objective_loss(items, self._targets(inputs), self.reward.reward_config)
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
        """Raw outputs of a batch and their targets; the loss is computed over the whole set at once."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            items = items_of(model(inputs["images"], inputs["prompts"]), self.reward.reward_config)
        targets = self._targets(inputs)
        return None, items, items.new_zeros(len(items)) if targets is None else targets

    def _targets(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if not is_pairwise(self.reward.reward_config):
            return inputs.get("labels")
        if self.args.margin_scale == 0:
            return None
        if inputs.get("margin") is None:
            raise ValueError(f"margin_scale is {self.args.margin_scale}, but some of the pairs have no margin.")
        return self.args.margin_scale * inputs["margin"]

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        config = self.reward.reward_config
        items, targets = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
        logits = objective_logits(items, config)
        truths = torch.ones(len(logits), dtype=torch.bool) if is_pairwise(config) else targets.bool()
        without_targets = is_pairwise(config) and self.args.margin_scale == 0
        loss = objective_loss(items, None if without_targets else targets, config)
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
        else:
            self.reward.restore(load_own_checkpoint(self.state.best_model_checkpoint))

    @property
    def _is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed hold the weights; these have files of their own in a checkpoint."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled
