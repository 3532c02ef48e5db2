"""The training loop shared by the recipes, and models saved in half the space."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from precision import has_fast_bfloat16
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What a recipe chooses; everything else is the Trainer's default.

    The learning rate is constant and falls to zero along a cosine over the last `decay_steps`. While it is constant,
    nothing depends on `max_steps`, so a long run can be stopped at any checkpoint and resumed with the number of steps
    that there is time for, and is then the same as a run of that length. The last checkpoint of a run that has ended is
    none of these: its rate is zero already.

    Attributes:
        warmup_steps: over which the rate rises; 100 if not given, and no more than a quarter of all.
        decay_steps: over which it falls; a quarter of all if not given.
        bf16: in bfloat16 where the machine is fast at it, else in float32.
        milestone: step at which the average is kept for good, in `output_dir/milestone.safetensors`.
    """

    output_dir: Path
    max_steps: int
    batch_size: int
    learning_rate: float
    seed: int
    ema_decay: float
    warmup_steps: int | None = None
    decay_steps: int | None = None
    resume: bool = False
    bf16: bool = False
    save_steps: int = 100
    weight_decay: float = 0.01
    milestone: int | None = None

    def training_arguments(self) -> TrainingArguments:
        """The same in the Trainer's words."""
        quarter = self.max_steps // 4
        warmup_steps = min(100, quarter) if self.warmup_steps is None else self.warmup_steps
        decay_steps = quarter if self.decay_steps is None else self.decay_steps
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return TrainingArguments(
            output_dir=str(self.output_dir / "checkpoints"),
            max_steps=self.max_steps,
            per_device_train_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            adam_beta2=0.99,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={
                "num_stable_steps": self.max_steps - warmup_steps - decay_steps,
                "num_decay_steps": decay_steps,
            },
            warmup_steps=warmup_steps,
            seed=self.seed,
            use_cpu=device == "cpu",
            ddp_find_unused_parameters=False,
            bf16=self.bf16 and has_fast_bfloat16(device),
            save_steps=self.save_steps,
            save_total_limit=2,
            logging_steps=50,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_drop_last=True,
        )


class EMACallback(TrainerCallback):
    """Averages the weights, keeps the average beside each checkpoint and leaves it in the model at the end."""

    def __init__(self, model: nn.Module, config: FitConfig, checkpoint: str | None) -> None:
        self.names, self.parameters = map(list, zip(*model.named_parameters(), strict=True))
        self.config = config
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
        if checkpoint is not None:
            self.ema.load_state_dict(torch.load(Path(checkpoint) / "ema.pt", weights_only=True))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the average to the model's device."""
        self.ema.to(self.parameters[0].device)
        torch.manual_seed(args.seed + args.process_index)  # processes of one run must not share their noise

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes the new weights into the average, and keeps it at the milestone."""
        self.ema.step(self.parameters)
        if state.global_step == self.config.milestone and state.is_world_process_zero:
            average = dict(zip(self.names, self.ema.shadow_params, strict=True))
            save_file(average, self.config.output_dir / "milestone.safetensors")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the average into the checkpoint."""
        if state.is_world_process_zero:
            torch.save(self.ema.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / "ema.pt")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the average into the model."""
        self.ema.copy_to(self.parameters)


def fit(
    model: nn.Module, dataset: Dataset, config: FitConfig, parameter_groups: list[dict[str, Any]] | None = None
) -> bool:
    """Trains `model`, whose forward takes a batch of `dataset` and returns `{"loss": ...}`; leaves the average in it.

    Randomness inside the model's forward comes from torch's global generator, which is seeded here and whose state the
    Trainer keeps in each checkpoint, so that a resumed run is the same run. Groups of parameters may have a learning
    rate `lr` of their own.

    Returns:
        Whether this is the process that should save the model (of several, where `torchrun` started them).

    Raises:
        ValueError: to resume from a checkpoint of more steps than are asked for.
    """
    arguments = config.training_arguments()
    begun = config.resume and Path(arguments.output_dir).is_dir()
    checkpoint = get_last_checkpoint(arguments.output_dir) if begun else None
    average = EMACallback(model, config, checkpoint)
    done = 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])
    if done > config.max_steps:
        raise ValueError(f"{checkpoint} has more than {config.max_steps} steps: ask for {done}, or remove it.")
    if done == config.max_steps:
        average.ema.copy_to(average.parameters)  # the Trainer would take one step more
        return arguments.process_index == 0
    trainer = Trainer(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=_as_is,
        callbacks=[average],
        optimizers=(None if parameter_groups is None else _optimizer(parameter_groups, arguments), None),
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    print(f"trained to step {trainer.state.global_step} in {(time.perf_counter() - start) / 60:.1f} minutes")
    return trainer.is_world_process_zero()


def _optimizer(parameter_groups: list[dict[str, Any]], arguments: TrainingArguments) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups,
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=arguments.weight_decay,
    )


def _as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The datasets make whole batches (`__getitems__`), nothing is left to collate."""
    return batch


def _halve(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.half()


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Saves a model of transformers, which by default computes in the dtype that its config names: here float32."""
    _halve(model)
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model_of_diffusers(model: ModelMixin, folder: Path) -> None:
    """Saves a model of Diffusers, which loads it in float32 whatever the file holds."""
    _halve(model)
    model.save_pretrained(folder)
    _forget_origin(folder / "config.json")


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Saves a pipeline of such models."""
    _halve(pipe.unet)
    _halve(pipe.vae)
    pipe.save_pretrained(folder)
    save_model(pipe.text_encoder, folder / "text_encoder")
    for name in ("vae/config.json", "unet/config.json", "model_index.json"):
        _forget_origin(folder / name)


def _forget_origin(path: Path) -> None:
    """Diffusers notes in a config where it was loaded from, which means nothing on another machine."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
