"""LLaVA-Reward's names in the registry and how they are loaded; importing this module loads no weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fk_reward.rewards.base import RewardCard, SafetyFacts
from fk_reward.rewards.llava_reward.backbones.phi3_vision import PHI3_VISION
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import QWEN2_5_VL
from fk_reward.rewards.llava_reward.config import (
    BLIND_TO,
    CUSTOM_CARD,
    DIMENSIONS,
    SOURCE,
    TEMPERATURE,
    TEMPERATURE_SOURCE,
)
from fk_reward.rewards.registry import RewardEntry

if TYPE_CHECKING:
    from fk_reward.rewards.llava_reward.backbones.base import BackboneSpec
    from fk_reward.rewards.llava_reward.llava_reward import LlavaReward
    from fk_reward.rewards.llava_reward.loading import Adapter, Bands

OFFICIAL_ADAPTERS = "smz8599/LLaVA-Reward"
"""Hub repository of the official checkpoints."""


def load_llava_reward(  # noqa: PLR0913 (options of one reward)
    *,
    adapter: Adapter | Mapping[str, Adapter],
    backbone: str | os.PathLike[str] | None = None,
    dimension: str | Sequence[str] | None = None,
    num_crops: int | None = None,
    preview_num_crops: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    revision: str = "main",
    backbone_revision: str = "main",
    batch_size: int | None = 8,
    offload: bool = False,
    merge_lora: bool = False,
    bands: Bands | None = None,
    card: RewardCard | None = None,
) -> LlavaReward:
    """Load a LLaVA-Reward: what `load_reward("llava-reward", ...)` calls.

    Rewards with the same backbone share it, and each adapter is in memory once.

    Args:
        adapter: a checkpoint (our folder, an official folder, a hub repository of either, the folder of an official
            reward that was fine-tuned as a whole, the name of an embedded one), or a mapping of dimensions to
            checkpoints; the first dimension is active.
        backbone: hub id, folder or name of an embedded model; by default the one that our checkpoint names.
        dimension: which dimensions to look for in `adapter`, one or several; may be left out for checkpoints in
            our format, which hold one and say which.
        num_crops: Phi-3.5-vision: largest number of crops of 336 pixels per image, 16 in the official code; fewer are
            faster. By default, as for the next two, what our (first) checkpoint was trained with.
        preview_num_crops: Phi-3.5-vision: the same for predictions on the way of a sampler, which need no detail: 4 is
            less than a third of the tokens of 16. By default as many as for finished images.
        min_pixels: Qwen2.5-VL: images of fewer pixels are enlarged.
        max_pixels: Qwen2.5-VL: images of more pixels are made smaller.
        backbone_options: preprocessing options of other backbones, by name; the three above have their own keywords.
        torch_dtype: floating dtype of the backbone; the official code uses bfloat16.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        quantization_config: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of hub repositories of adapters.
        backbone_revision: branch, tag or commit of the backbone's hub repository.
        batch_size: number of images that the backbone sees at once; None for all of a call.
        offload: keep the weights on the CPU and move them to the device only while scoring.
        merge_lora: add the adapter to the backbone's weights, which saves about an eighth of a call's operations at
            rank 128. The reward then has a backbone of its own and one dimension; the weights from before stay on the
            CPU, and `reward.model.adapters.unmerge()` puts them back bit for bit. Scores change by rounding: by less
            than 1e-4 of their spread in float32, less than 0.1 of it in bfloat16 (measured on the shapes model).
        bands: adapters that judge predictions of a noise level on the way of a sampler; finished images are for
            `adapter`. A checkpoint whose dimension names a band, a folder with several, or a list of such.
        card: facts about the weights.

    Raises:
        OSError: when files are missing.
        TypeError: for an option that the backbone does not have.
        ValueError: when adapter and backbone do not belong together; it says in what. When `merge_lora` is asked for
            several dimensions, or with a quantised backbone.
    """
    from fk_reward.rewards.llava_reward import loading
    from fk_reward.rewards.llava_reward.backbones.base import spec_of
    from fk_reward.rewards.llava_reward.llava_reward import LlavaReward

    adapters = _by_dimension(adapter, dimension)
    if merge_lora and len(adapters) > 1:
        raise ValueError(f"merge_lora=True serves one dimension, got {', '.join(map(str, adapters))}: load one.")
    if merge_lora and quantization_config is not None:
        raise ValueError("merge_lora=True changes weights, which quantization_config packs: leave one of them out.")
    first = next(iter(adapters.values()))
    path = backbone if backbone is not None else loading.base_model_of(first, revision=revision)
    # Small files first: a mistake in them should not cost the minutes that a backbone takes to load.
    for name, source in adapters.items():
        loading.check_before_loading(source, dimension=name, revision=revision)
    cls = spec_of(path, revision=backbone_revision).backbone
    options = {"num_crops": num_crops, "min_pixels": min_pixels, "max_pixels": max_pixels, **(backbone_options or {})}
    settings = {
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "quantization_config": quantization_config,
        "revision": backbone_revision,
        # Later ones win: the backbone's defaults, what the checkpoint was trained with, what the caller gives.
        **cls.default_options(),
        **loading.options_of(first, backbone=cls.model_type, revision=revision),
        **{name: value for name, value in options.items() if value is not None},
    }
    model = loading.shared_model(path, torch_dtype=torch_dtype, offload=offload, settings=settings, private=merge_lora)
    keys = dict(
        loading.attach_adapter(model, source, dimension=name, revision=revision) for name, source in adapters.items()
    )
    for key in keys.values() if merge_lora else ():
        if key in model.adapters.names:
            model.adapters.merge(key)
    preview = None if preview_num_crops is None else {"num_crops": preview_num_crops}
    reward = LlavaReward(model, keys, batch_size=batch_size, offload=offload, preview_options=preview, card=card)
    return reward if bands is None else reward.add_bands(bands, revision=revision)


def _by_dimension(
    adapter: Adapter | Mapping[str, Adapter], dimension: str | Sequence[str] | None
) -> dict[str | None, Adapter]:
    if isinstance(adapter, Mapping):
        if dimension is not None:
            raise ValueError("Give the dimensions either as keys of adapter or as dimension, not both.")
        if not adapter:
            raise ValueError("adapter is an empty mapping: expected at least one dimension.")
        # A new dict: keys of a Mapping are invariant, so that mypy takes no Mapping[str, ...] for one of str | None.
        return {name: source for name, source in adapter.items()}
    names: list[str | None] = [dimension] if dimension is None or isinstance(dimension, str) else list(dimension)
    return dict.fromkeys(names, adapter)


_LOGIT = SafetyFacts(safe_above=0.0)
"""Of a reward that was trained on labels, whose score is a logit."""


def official_card(dimension: str, spec: BackboneSpec) -> RewardCard:
    """The card of an official checkpoint.

    Raises:
        ValueError: for a backbone without official checkpoints.

    Example:
        >>> official_card("safety", QWEN2_5_VL).name
        'llava-reward-safety@qwen'
    """
    if spec.official is None:
        raise ValueError(f"{spec.model_type} has no official checkpoints.")
    return RewardCard(
        name=f"llava-reward-{dimension}{spec.official.name_suffix}",
        summary=f"LLaVA-Reward: {DIMENSIONS[dimension]}",
        spread=TEMPERATURE,
        spread_source=TEMPERATURE_SOURCE,
        differentiable=True,
        looks_at="the whole image",
        blind_to=BLIND_TO.get(dimension, ()),
        safety=_LOGIT if dimension == "safety" else None,
        licence=f"{spec.licence} (backbone); the adapter's is not stated",
        source=SOURCE,
        weights=f"{OFFICIAL_ADAPTERS} on {spec.hub_id}",
        memory=spec.memory,
    )


def _official(dimension: str, spec: BackboneSpec) -> RewardEntry:
    card = official_card(dimension, spec)
    build = partial(load_llava_reward, adapter=OFFICIAL_ADAPTERS, backbone=spec.hub_id, dimension=dimension, card=card)
    return RewardEntry(card, build)


LLAVA_REWARD = RewardEntry(CUSTOM_CARD, load_llava_reward)
ALIGNMENT, FIDELITY, SAFETY, OVERALL = (_official(name, PHI3_VISION) for name in DIMENSIONS)
ALIGNMENT_QWEN, FIDELITY_QWEN, SAFETY_QWEN, OVERALL_QWEN = (_official(name, QWEN2_5_VL) for name in DIMENSIONS)


_JUDGES = {
    "alignment": "how well an image of coloured shapes shows what the prompt says",
    "fidelity": "how sound and free of artefacts an image of coloured shapes is",
    "safety": "whether an image of coloured shapes is free of the forbidden sign",
}
_SPREADS = {"alignment": 0.18, "fidelity": 0.33, "safety": 0.58}
"""Among eight finished images of a held-out prompt: `examples/shapes/check_predictions.py early`."""


def _embedded(dimension: str) -> RewardEntry:
    card = RewardCard(
        name=f"shapes-llava-reward-{dimension}",
        summary=f"LLaVA-Reward in small: {_JUDGES[dimension]}",
        spread=_SPREADS[dimension],
        spread_source="among eight finished images of a held-out prompt: examples/shapes/check_predictions.py early",
        differentiable=True,
        looks_at="the whole image",
        blind_to=BLIND_TO.get(dimension, ()),
        safety=_LOGIT if dimension == "safety" else None,
        licence="Apache-2.0",
        source="Zhou et al., ICCV 2025, arXiv 2507.21391; trained by the scripts in examples/shapes",
        weights="in the package",
        memory="14 MB in float32",
    )
    # Float32 and a large batch: for a model of 14 MB, less would save nothing.
    build = partial(load_llava_reward, adapter=card.name, torch_dtype=torch.float32, batch_size=64, card=card)
    return RewardEntry(card, build)


SHAPES_ALIGNMENT = _embedded("alignment")
SHAPES_FIDELITY = _embedded("fidelity")
SHAPES_SAFETY = _embedded("safety")
