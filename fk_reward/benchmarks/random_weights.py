"""What is measured without its files: at full size with random weights where the size is known, else what is at hand.

Neither memory nor speed depends on the numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderTiny

from fk_reward.benchmarks.full_size_pipelines import FULL_SIZE_PIPELINES
from fk_reward.benchmarks.full_size_rewards import FULL_SIZE
from fk_reward.benchmarks.random_reward import default_dtype, seeded_on
from fk_reward.benchmarks.reward_times import is_at_hand
from fk_reward.pipelines import PREVIEWS, FKSteeringPipeline
from fk_reward.pipelines.decoding import Preview, load_preview
from fk_reward.rewards import Reward, load_reward, reward_card
from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.composition.parser import is_composition, parse_expression

_PUBLISHED = {decoder.repository: decoder.latent_channels for decoder in PREVIEWS.values() if "/" in decoder.repository}
"""Hub id of a tiny autoencoder -> channels of its latents: all in which its `config.json` differs from Diffusers'
defaults. The test compares with the number of parameters that github.com/madebyollin/taesd states."""


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
    """A steered pipeline on a device, without a progress bar.

    Args:
        model: with random weights one of `FULL_SIZE_PIPELINES`; any other is loaded.
        reward: registered name, or a composition of names; with random weights as for `sized_reward`.
        device: of the calls.
        dtype: floating, of the model; the reward has that of its own loader.
        random_weights: False to load model and reward, whatever they are.
        model_offload: `enable_model_cpu_offload`.
        reward_offload: whether a reward of random weights rests on the CPU between its calls.
        seed: of random weights.

    Raises:
        ValueError: with random weights, for a reward whose size is not known, and which is not at hand.

    Example:
        >>> pipe = steered_pipeline("shapes-sd", reward="shapes-verifier", device="cpu", dtype=torch.float32)
        >>> pipe.reward.card.name
        'shapes-verifier'
    """
    known = random_weights and model in FULL_SIZE_PIPELINES
    scorer = sized_reward(reward, device=device, seed=seed, offload=reward_offload) if random_weights else reward
    if known:
        place = "cpu" if model_offload else device
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


def sized_reward(name: str, *, device: torch.device | str, seed: int = 0, offload: bool = False) -> Reward:
    """A reward of random weights on a device, or one that is at hand, as it is loaded; or a composition of such.

    Args:
        name: registered name, or a composition of names.
        device: of random weights.
        seed: of random weights.
        offload: whether rewards of random weights rest on the CPU between their calls.

    Raises:
        ValueError: for a reward whose size is not known, and which is not at hand.

    Example:
        >>> sized_reward("0.5*clipscore + 0.5*shapes-verifier", device="meta").device
        device(type='meta')
    """
    if is_composition(name):
        expression, _ = parse_expression(name, reward_card)
        parts = {part: sized_reward(part, device=device, seed=seed, offload=offload) for part in expression.names}
        return CompositeReward(expression, parts)
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
    """A preview of a pipeline's latents; a tiny autoencoder of random weights, made from its configuration.

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
    config.pop("block_out_channels", None)  # which Diffusers writes, and warns of when it reads it
    with seeded_on(device, seed), default_dtype(dtype):
        return AutoencoderTiny.from_config(config).eval().requires_grad_(False)
