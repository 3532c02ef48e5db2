"""Training of skill experts: a LoRA of the text-to-image model on images of one skill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.optimization import get_scheduler
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fk_reward.durable_files import naming_path, read_json, write_whole
from fk_reward.output_folder import hold_folder_together
from fk_reward.training.skills.denoising import Denoising, encode_latents, find_denoising
from fk_reward.training.skills.images import DrawnImage
from fk_reward.value_checks import real_number, whole_number

EXPERT_FILE = "expert.json"
_NAME = "default"  # of the adapter while it is trained
_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_REMEDY = "Name another folder."
_LR_SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""Ours -> Diffusers' own, all of them with a warm-up."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """How an expert is trained.

    Attributes:
        rank: of LoRA.
        lora_alpha: of LoRA, whose update is scaled by alpha / rank; the rank if not given.
        target_modules: ends of the names of the denoiser's layers that are adapted; its attention by default.
        train_text_encoders: adapt the attention of the text encoders, too: of SD one, of SDXL and SD3 both CLIPs.
        max_steps: steps of the optimiser.
        batch_size: images of a step on each process.
        gradient_accumulation_steps: batches of each step.
        learning_rate: of AdamW, the highest.
        warmup_steps: steps in which it rises from 0.
        lr_scheduler: what it does then: constant, or linear or cosine to 0 at the last step.
        weight_decay: of AdamW.
        max_grad_norm: to which longer gradients are cut.
        caption_dropout: share of captions that are replaced by an empty one, so that guidance goes on to work.
        snr_gamma: gamma of the min-SNR weighting; equal weights if not given. Not for flow matching.
        mixed_precision: no, fp16 or bf16, as accelerate understands it.
        gradient_checkpointing: compute activations again to save memory.
        save_steps: steps between checkpoints, of which the last one is kept.
        seed: of initial weights, batches and noise.

    Raises:
        TypeError: for a value of a wrong type.
        ValueError: for a value out of range.
    """

    rank: int = 16
    lora_alpha: int | None = None
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    train_text_encoders: bool = False
    max_steps: int = 1000
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    lr_scheduler: str = "constant"
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    caption_dropout: float = 0.1
    snr_gamma: float | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    save_steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "max_steps", "batch_size", "gradient_accumulation_steps", "save_steps"):
            whole_number(name, getattr(self, name), minimum=1)
        for name in ("warmup_steps", "seed"):
            whole_number(name, getattr(self, name), minimum=0)
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            real_number(name, getattr(self, name), low=0.0)
        real_number("caption_dropout", self.caption_dropout, low=0.0, high=1.0)
        if self.lora_alpha is not None:
            whole_number("lora_alpha", self.lora_alpha, minimum=1)
        if self.snr_gamma is not None:
            real_number("snr_gamma", self.snr_gamma, low=0.0)
        if not self.target_modules:
            raise ValueError("target_modules must name at least one layer.")
        if self.lr_scheduler not in _LR_SCHEDULERS:
            raise ValueError(f"lr_scheduler must be {', '.join(_LR_SCHEDULERS)}, got {self.lr_scheduler!r}.")
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise ValueError(f"mixed_precision must be no, fp16 or bf16, got {self.mixed_precision!r}.")


@dataclass(frozen=True)
class TrainedStep:
    """A step of the training.

    Attributes:
        step: number of steps that are done.
        loss: mean loss of its batches on this process; NaN for a step of an earlier start.
    """

    step: int
    loss: float


@dataclass(frozen=True, eq=False)
class _Data:
    """Latents and captions, the same on every process."""

    latents: Tensor
    captions: list[str]


def train_expert(
    pipe: Any,
    images: Sequence[DrawnImage],
    folder: str | os.PathLike[str],
    *,
    config: ExpertConfig | None = None,
    resume: bool = False,
) -> Iterator[TrainedStep]:
    """Train an expert, a step at a time; at the end `folder` holds what `load_lora_weights` of the pipeline reads.

    Latents are encoded once; embeddings too, where the text encoders are not trained. Batches and noise of a step
    depend on the seed and its number alone, so that a training that goes on from a checkpoint is the same training.
    The pipeline is moved to the device of accelerate; its own weights are not changed, and have no adapter afterwards.

    Args:
        pipe: a Stable Diffusion, SDXL or SD3 pipeline without adapters.
        images: of one size, with their prompts.
        folder: for the adapter, `expert.json` and the last checkpoint.
        config: how; the defaults if not given.
        resume: go on from the checkpoint in the folder, if there is one.

    Yields:
        Each step; first of all the one that it goes on from, where there is a checkpoint.

    Raises:
        FileExistsError: the folder holds an expert or a checkpoint, and `resume` is False.
        FloatingPointError: when the loss is not finite.
        FolderInUseError: an OSError, when another run writes there.
        ValueError: for a pipeline of another family or with adapters, images of several sizes, layers that are not
            there, or a checkpoint of other settings.
    """
    config, folder = config or ExpertConfig(), Path(folder)
    model = find_denoising(pipe)(pipe, snr_gamma=config.snr_gamma)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoders)]
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        kwargs_handlers=handlers,
    )
    with hold_folder_together(folder, accelerator.state), naming_path(folder):
        _check_folder(folder, config, resume=resume)
        pipe.to(accelerator.device)  # the parts that accelerate does not know, too: they encode
        data = _encoded(pipe, images, config.batch_size)
        with _adapted(model, config) as trained:
            yield from _Run(accelerator, model, trained, data, config, folder).steps()


class _Run:
    """One training."""

    def __init__(  # noqa: PLR0913, PLR0917 (the parts of one training, put together in one place)
        self,
        accelerator: Accelerator,
        model: Denoising,
        trained: Sequence[str],
        data: _Data,
        config: ExpertConfig,
        folder: Path,
    ) -> None:
        self.accelerator, self.model, self.trained = accelerator, model, trained
        self.data, self.config, self.folder = data, config, folder
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(self.weights.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
        scheduler = get_scheduler(
            _LR_SCHEDULERS[config.lr_scheduler],
            optimizer,
            num_warmup_steps=config.warmup_steps * accelerator.num_processes,  # accelerate steps once for each
            num_training_steps=config.max_steps * accelerator.num_processes,
        )
        self.known = {} if config.train_text_encoders else _embeddings(model, data.captions)
        self.prepared, self.optimizer, self.scheduler = accelerator.prepare(model, optimizer, scheduler)

    def steps(self) -> Iterator[TrainedStep]:
        """All steps that are left, and then the adapter is written."""
        done = self._restore()
        if done:
            yield TrainedStep(done, float("nan"))
        for step in range(done, self.config.max_steps):
            loss = self._step(step)
            if (step + 1) % self.config.save_steps == 0 or step + 1 == self.config.max_steps:
                self._checkpoint(step + 1)
            yield TrainedStep(step + 1, loss)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write()
        self.accelerator.wait_for_everyone()

    def _step(self, step: int) -> float:
        losses = []
        for part in range(self.config.gradient_accumulation_steps):
            number = step * self.config.gradient_accumulation_steps + part
            with self.accelerator.accumulate(self.prepared):
                loss = self._loss(number)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(list(self.weights.values()), self.config.max_grad_norm)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            losses.append(loss.item())
        if not np.isfinite(losses).all():
            raise FloatingPointError(f"The loss of step {step + 1} is {losses}: lower the learning rate.")
        return float(np.mean(losses))

    def _loss(self, number: int) -> Tensor:
        config, processes, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        start = (number * processes + rank) * config.batch_size
        rows = batch_rows(len(self.data.captions), start, config.batch_size, seed=config.seed)
        generator = torch.Generator().manual_seed(_seed(config.seed, number, rank))
        latents = self.data.latents[rows].to(self.model.device)
        dropped = (torch.rand(len(rows), generator=generator) < config.caption_dropout).tolist()
        captions = ["" if drop else self.data.captions[row] for drop, row in zip(dropped, rows, strict=True)]
        return self.prepared(latents, self._conditions(captions), generator)

    def _conditions(self, captions: Sequence[str]) -> dict[str, Tensor] | list[str]:
        if not self.known:
            return list(captions)
        names = self.known[""]
        return {name: torch.cat([self.known[caption][name] for caption in captions]) for name in names}

    def _restore(self) -> int:
        """Load the checkpoint, if there is one; the number of its step."""
        folder = self.folder / "checkpoint"
        if not folder.is_dir():
            return 0
        tensors = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[name])
        state = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return int(state["step"])

    def _checkpoint(self, step: int) -> None:
        """Write a folder and put it in the place of the last one."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        new, old, place = (self.folder / name for name in (".checkpoint-new", ".checkpoint-old", "checkpoint"))
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        new.mkdir(parents=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.weights.items()}
        save_file(weights, new / "weights.safetensors")
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(), "step": step}
        torch.save(state, new / "optimizer.pt")
        if place.exists():
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)

    def _write(self) -> None:
        """The adapter, in the words of Diffusers, which writes alpha and rank into the file."""
        modules = {name: self.model.parts[name] for name in self.trained}
        layers = {f"{name}_lora_layers": get_peft_model_state_dict(module) for name, module in modules.items()}
        self.model.pipe.save_lora_weights(str(self.folder), **layers, **_collate_lora_metadata(modules))


def batch_rows(num_rows: int, start: int, size: int, *, seed: int) -> list[int]:
    """Rows of the places `start` to `start + size` of an endless sequence of shuffled epochs.

    Example:
        >>> sorted(batch_rows(4, 0, 4, seed=0)), len(batch_rows(4, 2, 5, seed=0))
        ([0, 1, 2, 3], 5)
    """
    orders: dict[int, list[int]] = {}
    rows = []
    for place in range(start, start + size):
        epoch, index = divmod(place, num_rows)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(_seed(seed, epoch, 1 << 20))
            orders[epoch] = torch.randperm(num_rows, generator=generator).tolist()
        rows.append(orders[epoch][index])
    return rows


def _seed(seed: int, number: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0] >> 1)


def _check_folder(folder: Path, config: ExpertConfig, *, resume: bool) -> None:
    """Refuse to mix two trainings in one folder, and write down the settings of this one."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    if (folder / EXPERT_FILE).exists():
        if not resume:
            raise FileExistsError(f"{folder} holds an expert already: add resume to go on with it. {_REMEDY}")
        known = read_json(folder / EXPERT_FILE, remedy=_REMEDY)
        constant = config.lr_scheduler == "constant"  # such a training may be made longer
        free = ("max_steps", "save_steps") if constant else ("save_steps",)
        if other := sorted(n for n, value in settings.items() if n not in free and known.get(n) != value):
            raise ValueError(f"The expert in {folder} was begun with other {', '.join(other)}. {_REMEDY}")
    elif (folder / LORA_WEIGHT_NAME_SAFE).exists():
        raise FileExistsError(f"{folder} holds another adapter. {_REMEDY}")
    write_whole(folder / EXPERT_FILE, json.dumps(settings, indent=1) + "\n")


def _encoded(pipe: Any, images: Sequence[DrawnImage], batch_size: int) -> _Data:
    if not images:
        raise ValueError("There is no image to train on.")
    encoded, shape = [], None
    for start in range(0, len(images), batch_size):
        arrays = [np.asarray(image.load(), dtype=np.float32) / 255 for image in images[start : start + batch_size]]
        for array, image in zip(arrays, images[start : start + batch_size], strict=True):
            shape = shape or array.shape
            if array.shape != shape:
                raise ValueError(f"{image.path} is {array.shape[:2]}, others are {shape[:2]}: all must be of one size.")
        encoded.append(encode_latents(pipe, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)))
    return _Data(torch.cat(encoded), [image.prompt for image in images])


@torch.no_grad()
def _embeddings(model: Denoising, captions: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Caption -> its conditions with one row, on the CPU; that of the empty caption, too."""
    return {
        caption: {name: value.cpu() for name, value in model.encode([caption]).items()}
        for caption in dict.fromkeys(["", *captions])
    }


@contextmanager
def _adapted(model: Denoising, config: ExpertConfig) -> Iterator[list[str]]:
    """New adapters in the pipeline, trainable and in float32; they are taken out again at the end."""
    pipe, trained = model.pipe, [model.denoiser_name]
    if config.train_text_encoders:
        trained += [name for name in model.encoder_names if name in model.parts]
    if any(getattr(model.parts[name], "peft_config", None) for name in trained):
        raise ValueError("The pipeline has an adapter: fuse or unload it first.")
    for module in (pipe.vae, *model.parts.values()):
        module.requires_grad_(False)
    modes = {name: module.training for name, module in model.parts.items()}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            for name in trained:
                _add_adapter(model.parts[name], config, is_denoiser=name == model.denoiser_name)
        cast_training_params([model.parts[name] for name in trained], dtype=torch.float32)
        yield trained
    finally:
        pipe.unload_lora_weights()
        for name, module in model.parts.items():
            module.train(modes[name])


def _add_adapter(module: nn.Module, config: ExpertConfig, *, is_denoiser: bool) -> None:
    targets = list(config.target_modules if is_denoiser else _TEXT_TARGETS)
    alpha = config.rank if config.lora_alpha is None else config.lora_alpha
    lora = LoraConfig(r=config.rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets)
    module.add_adapter(lora, adapter_name=_NAME)  # type: ignore[operator]
    module.train()
    if config.gradient_checkpointing:
        enable = "enable_gradient_checkpointing" if is_denoiser else "gradient_checkpointing_enable"
        getattr(module, enable)()
