"""The pipeline, the reward and the preview of a plan: on the meta device, or with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from fk_reward.models import resolve_model
from fk_reward.pipelines import PREVIEWS, FKSteeringPipeline, stochastic_scheduler
from fk_reward.pipelines.decoding import AUTO, Preview, load_preview
from fk_reward.pipelines.hooks import main_denoiser
from fk_reward.pipelines.schedulers import Solver
from fk_reward.planning.full_size_pipelines import FULL_SIZE_PIPELINES
from fk_reward.planning.full_size_rewards import FULL_SIZE, default_dtype, seeded_on
from fk_reward.planning.meta_device import without_weights
from fk_reward.rewards import Reward, load_reward, reward_card
from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.composition.parser import is_composition, parse_expression
from fk_reward.rewards.noise_bands import BANDS_SUFFIX
from fk_reward.rewards.vlm_judge import VLMJudge

_AT_HAND = ("in the package", "none")  # `weights` on the cards of rewards that need no download

_PUBLISHED = {decoder.repository: decoder.latent_channels for decoder in PREVIEWS.values() if "/" in decoder.repository}
"""Hub id of a tiny autoencoder -> channels of its latents, the only difference of its `config.json` from Diffusers'
defaults. A test compares with the number of parameters that github.com/madebyollin/taesd states."""


def steered_pipeline(  # noqa: PLR0913 (what is measured, and where)
    model: str,
    *,
    reward: str,
    device: torch.device | str,
    dtype: torch.dtype,
    random_weights: bool = True,
    model_offload: bool = False,
    reward_offload: bool = False,
    seed: int = 0,
) -> FKSteeringPipeline:
    """Make a steered pipeline on a device, without a progress bar.

    Args:
        model: with random weights one of `FULL_SIZE_PIPELINES`; any other is loaded.
        reward: registered name, or a composition of names; with random weights as for `sized_reward`.
        device: of the calls.
        dtype: floating, of the model; the reward has that of its own loader.
        random_weights: False to load model and reward, whatever they are.
        model_offload: `enable_model_cpu_offload`.
        reward_offload: whether a reward of random weights stays on the CPU between its calls.
        seed: of random weights.

    Raises:
        ValueError: with random weights, a reward of unknown size that would have to be downloaded.

    Example:
        >>> pipe = steered_pipeline("shapes-sd", reward="shapes-verifier", device="cpu", dtype=torch.float32)
        >>> pipe.reward.card.name
        'shapes-verifier'
    """
    known = random_weights and model in FULL_SIZE_PIPELINES
    scorer = sized_reward(reward, device=device, seed=seed, offload=reward_offload) if random_weights else reward
    if known:
        place = "cpu" if model_offload else device  # with offload Diffusers moves each module when it is called
        stock = FULL_SIZE_PIPELINES[model].make(device=place, dtype=dtype, seed=seed)
        pipe = FKSteeringPipeline(stock, reward=scorer)
    else:
        pipe = FKSteeringPipeline.from_pretrained(model, reward=scorer, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if not model_offload:
        return pipe.to(device)
    pipe.reward.to(device)
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def is_at_hand(name: str) -> bool:
    """Whether a reward can be loaded without a download and without a choice.

    Example:
        >>> is_at_hand("shapes-clipscore"), is_at_hand("clipscore")
        (True, False)
    """
    return reward_card(name).weights in _AT_HAND


def sized_reward(name: str, *, device: torch.device | str, seed: int = 0, offload: bool = False) -> Reward:
    """Make a reward of random weights, load one that needs no download, or compose such rewards.

    Args:
        name: registered name, or a composition of names.
        device: of random weights.
        seed: of random weights.
        offload: whether rewards of random weights stay on the CPU between their calls.

    Raises:
        ValueError: a reward of unknown size that would have to be downloaded.

    Example:
        >>> sized_reward("0.5*clipscore + 0.5*shapes-verifier", device="meta").device
        device(type='meta')
    """
    if is_composition(name):
        expression, _ = parse_expression(name, reward_card)
        parts = {part: sized_reward(part, device=device, seed=seed, offload=offload) for part in expression.names}
        return CompositeReward(expression, parts)
    name = name.removesuffix(BANDS_SUFFIX)  # the adapters of noise bands are a few per cent of the weights
    if name not in FULL_SIZE:
        if is_at_hand(name):
            return load_reward(name)
        raise ValueError(f"The size of reward {name!r} is not known: name one of {', '.join(sorted(FULL_SIZE))}.")
    if not offload:
        return FULL_SIZE[name].make(device=device, seed=seed)
    reward = FULL_SIZE[name].make(device="cpu", seed=seed)
    reward.offload = True
    return reward.to(device)


def sized_preview(
    preview: str | None, pipe: Any, *, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> Preview | None:
    """Make a preview of a pipeline's latents; a tiny autoencoder has random weights, and its configuration is read.

    Args:
        preview: as for `load_preview`. Of a folder or a hub id that is not in `PREVIEWS` the configuration is read.
        pipe: the pipeline.
        device: of the tiny autoencoder.
        dtype: the same, floating.
        seed: of its weights.

    Raises:
        ValueError: for an unknown name, or an autoencoder of other latents than the pipeline's.

    Example:
        >>> stock = FULL_SIZE_PIPELINES["sdxl"].make()
        >>> decoder = sized_preview("taesdxl", stock, device="meta", dtype=torch.float16).decoder
        >>> sum(weight.numel() for weight in decoder.parameters())
        1222531
    """
    load = partial(_tiny_autoencoder, device=torch.device(device), dtype=dtype, seed=seed)
    return load_preview(preview, pipe, load=load)


def _tiny_autoencoder(source: str, *, device: torch.device, dtype: torch.dtype, seed: int) -> AutoencoderTiny:
    known = _PUBLISHED.get(source)
    config = dict(AutoencoderTiny.load_config(source)) if known is None else {"latent_channels": known}
    config.pop("block_out_channels", None)  # Diffusers writes it, and warns when it reads it
    with seeded_on(device, seed), default_dtype(dtype):
        return AutoencoderTiny.from_config(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class PlannedModels:
    """Models of a steered call.

    Attributes:
        pipe: the pipeline to steer.
        rewards: the parts of the reward; one, unless it is a composition.
        preview: decodes at the scoring steps, or could; None if no preview is known.
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
        """Weights of a tiny autoencoder; empty for a preview by the pipeline's own."""
        return tensors_of(self.preview) if isinstance(self.preview, nn.Module) else []

    def reward_weights(self) -> list[Tensor]:
        """Weights of all parts of the reward."""
        return [tensor for reward in self.rewards for module in reward._held_modules() for tensor in tensors_of(module)]


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet or transformer of a pipeline.

    Raises:
        ValueError: it has neither.
    """
    denoiser = main_denoiser(pipe)
    if denoiser is None:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer, so it cannot be planned for.")
    return denoiser


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def weight_bytes(tensors: list[Tensor]) -> int:
    """Bytes of tensors; a shared one counts once.

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
def models_on_meta(
    model: str, reward: str, *, dtype: torch.dtype, preview: str | None = None, solver: Solver | None = None
) -> Iterator[PlannedModels]:
    """Make the model and the reward on the meta device, for the time of the context.

    Args:
        model: name of a published pipeline, of an embedded one, or a folder.
        reward: registered name whose size is known, or a composition of such names.
        dtype: floating, of the pipeline; the reward has that of its own loader.
        preview: as for `load_preview`, by name; None for the one that "auto" means, if any.
        solver: replaces the scheduler.

    Raises:
        ValueError: for a reward whose size is not known, a preview of other latents, a solver of other models.
    """
    with ExitStack() as stack:
        rewards = _meta_rewards(reward)
        for part in rewards:
            stack.enter_context(without_weights(part))
        pipe = meta_pipeline(model, dtype=dtype)
        if solver is not None:
            pipe.scheduler = solver.build(pipe.scheduler)
        yield PlannedModels(pipe, rewards, _meta_preview(preview, pipe, dtype))


def meta_pipeline(model: str, *, dtype: torch.dtype) -> DiffusionPipeline:
    """Make a pipeline on the meta device: a published one without any file, another one without reading its weights.

    Args:
        model: as for `models_on_meta`, or a hub id.
        dtype: floating.

    Raises:
        OSError: files of its configuration are missing.

    Example:
        >>> meta_pipeline("shapes-sd", dtype=torch.float16).unet.device
        device(type='meta')
    """
    if model in FULL_SIZE_PIPELINES:
        return FULL_SIZE_PIPELINES[model].make(dtype=dtype)
    source = resolve_model(model)
    index = DiffusionPipeline.load_config(source)
    modules = {
        name: module
        for name, entry in index.items()
        if isinstance(entry, list | tuple) and (module := _meta_module(source, name, entry, dtype)) is not None
    }
    # Diffusers loads no weights of modules that it is given.
    pipe = DiffusionPipeline.from_pretrained(source, **modules)
    pipe.scheduler = stochastic_scheduler(pipe.scheduler)
    return pipe


def _meta_module(source: str, name: str, entry: Any, dtype: torch.dtype) -> nn.Module | None:
    """A component on the meta device; None if it is not a module of Diffusers or transformers."""
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


def _meta_preview(preview: str | None, pipe: DiffusionPipeline, dtype: torch.dtype) -> Preview | None:
    try:
        return sized_preview(preview or AUTO, pipe, device="meta", dtype=dtype)
    except ValueError:
        if preview is None:  # "auto" knows no preview of this model
            return None
        raise


def _meta_rewards(text: str) -> tuple[Reward, ...]:
    if not is_composition(text):
        return (_meta_reward(text),)
    expression, _ = parse_expression(text, reward_card)
    return tuple({id(made): made for made in map(_meta_reward, expression.names)}.values())


def _meta_reward(name: str) -> Reward:
    reward = sized_reward(name, device="meta")
    if isinstance(reward, VLMJudge):
        raise ValueError(f"{name!r} answers in words, whose number is unknown; plan with another reward.")
    return reward
