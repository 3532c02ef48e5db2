"""The model and the reward that a plan is about, without the numbers of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from fk_reward.benchmarks.full_size_pipelines import FULL_SIZE_PIPELINES
from fk_reward.benchmarks.hollow import without_weights
from fk_reward.benchmarks.random_reward import default_dtype
from fk_reward.benchmarks.random_weights import sized_preview, sized_reward
from fk_reward.models import resolve_model
from fk_reward.pipelines import stochastic_scheduler
from fk_reward.pipelines.decoding import AUTO, Preview
from fk_reward.pipelines.hooks import main_denoiser
from fk_reward.pipelines.schedulers import Solver
from fk_reward.rewards import Reward, reward_card
from fk_reward.rewards.composition.parser import is_composition, parse_expression
from fk_reward.rewards.vlm_judge import VLMJudge


@dataclass(frozen=True)
class Subjects:
    """What runs in a steered call.

    Attributes:
        pipe: the pipeline to be steered.
        rewards: the parts of the reward, one where it is no composition.
        preview: decodes at the scoring steps, or could; None where nothing is known that would.
    """

    pipe: DiffusionPipeline
    rewards: tuple[Reward, ...]
    preview: Preview | None = None

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer of the pipeline."""
        return denoiser_of(self.pipe)

    @property
    def can_offload_reward(self) -> bool:
        """Whether every part with weights takes `offload=True` when it is loaded."""
        return all(hasattr(reward, "offload") for reward in self.rewards if reward.device is not None)

    def pipeline_weights(self) -> dict[str, list[Tensor]]:
        """Weights of the pipeline by what they are for: text, denoiser, decoder, other."""
        weights: dict[str, list[Tensor]] = {"text": [], "denoiser": [], "decoder": [], "other": []}
        for name, module in self.pipe.components.items():
            if isinstance(module, nn.Module):
                weights[_purpose(name)] += tensors_of(module)
        return weights

    def preview_weights(self) -> list[Tensor]:
        """Weights of a tiny autoencoder; none where the preview is of the pipeline's own."""
        return tensors_of(self.preview) if isinstance(self.preview, nn.Module) else []

    def reward_weights(self) -> list[Tensor]:
        """Weights of the reward, those that parts share once."""
        return [tensor for reward in self.rewards for module in reward._held_modules() for tensor in tensors_of(module)]


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet or transformer of a pipeline.

    Raises:
        ValueError: when it has neither.
    """
    denoiser = main_denoiser(pipe)
    if denoiser is None:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer, so it cannot be planned for.")
    return denoiser


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def weight_bytes(tensors: list[Tensor]) -> int:
    """Bytes of tensors, what is shared once.

    Example:
        >>> weight = torch.zeros(4)
        >>> weight_bytes([weight, weight, torch.zeros(2)])
        24
    """
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _purpose(component: str) -> str:
    for purpose, prefix in (("text", "text_encoder"), ("denoiser", "unet"), ("denoiser", "transformer")):
        if component.startswith(prefix):
            return purpose
    return "decoder" if component == "vae" else "other"


@contextmanager
def hollow_subjects(
    model: str, reward: str, *, dtype: torch.dtype, preview: str | None = None, solver: Solver | None = None
) -> Iterator[Subjects]:
    """The model and the reward on the meta device, for the time of the context.

    Args:
        model: name of a published pipeline, of an embedded one, or a folder.
        reward: registered name whose size is known, or a composition of such names.
        dtype: floating, of the pipeline; the reward has that of its own loader.
        preview: as for `load_preview`, by name; None for the one that "auto" means, where there is one.
        solver: replaces the scheduler.

    Raises:
        ValueError: for a reward whose size is not known, a preview of other latents, a solver of other models.
    """
    with ExitStack() as stack:
        rewards = _hollow_rewards(reward)
        for part in rewards:
            stack.enter_context(without_weights(part))
        pipe = hollow_pipeline(model, dtype=dtype)
        if solver is not None:
            pipe.scheduler = solver.build(pipe.scheduler)
        yield Subjects(pipe, rewards, _hollow_preview(preview, pipe, dtype))


def hollow_pipeline(model: str, *, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline on the meta device: a published one without any file, another one without reading its weights.

    Args:
        model: as for `hollow_subjects`, or a hub id.
        dtype: floating.

    Raises:
        OSError: when the files of its configuration are not there.

    Example:
        >>> hollow_pipeline("shapes-sd", dtype=torch.float16).unet.device
        device(type='meta')
    """
    if model in FULL_SIZE_PIPELINES:
        return FULL_SIZE_PIPELINES[model].make(dtype=dtype)
    source = resolve_model(model)
    index = DiffusionPipeline.load_config(source)
    modules = {
        name: module
        for name, entry in index.items()
        if isinstance(entry, list | tuple) and (module := _hollow_module(source, name, entry, dtype)) is not None
    }
    pipe = DiffusionPipeline.from_pretrained(source, **modules)
    pipe.scheduler = stochastic_scheduler(pipe.scheduler)
    return pipe


def _hollow_module(source: str, name: str, entry: Any, dtype: torch.dtype) -> nn.Module | None:
    """A component on the meta device; None for what is no module of Diffusers or transformers."""
    library, class_name = entry
    if library not in ("diffusers", "transformers"):
        return None
    made = getattr(import_module(library), class_name)
    if not issubclass(made, ModelMixin | PreTrainedModel):
        return None
    with torch.device("meta"), default_dtype(dtype):
        if issubclass(made, ModelMixin):
            module = made.from_config(made.load_config(source, subfolder=name))
        else:
            module = made(made.config_class.from_pretrained(source, subfolder=name))
    return nn.Module.to(module, dtype).eval()  # a configuration of transformers may name another dtype


def _hollow_preview(preview: str | None, pipe: DiffusionPipeline, dtype: torch.dtype) -> Preview | None:
    try:
        return sized_preview(preview or AUTO, pipe, device="meta", dtype=dtype)
    except ValueError:
        if preview is None:
            return None
        raise


def _hollow_rewards(text: str) -> tuple[Reward, ...]:
    if not is_composition(text):
        return (_hollow_reward(text),)
    expression, _ = parse_expression(text, reward_card)
    return tuple({id(made): made for made in map(_hollow_reward, expression.names)}.values())


def _hollow_reward(name: str) -> Reward:
    reward = sized_reward(name, device="meta")
    if isinstance(reward, VLMJudge):
        raise ValueError(f"{name!r} answers in words, and nobody knows how many; take another reward to plan with.")
    return reward
