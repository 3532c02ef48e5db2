"""LoRA adapters of Diffusers pipelines as files: reading them layer by layer, and writing merged ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fk_reward.durable_files import write_whole
from fk_reward.training.skills.low_rank import LowRank, lost_share, merge_updates

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""What an adapter may change of a pipeline; keys begin with these names."""

# The names of A and B: PEFT's, and those that Diffusers' training scripts write for UNets and text encoders.
_ENDINGS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_ALPHA = ".alpha"


def read_adapter(source: str | os.PathLike[str]) -> dict[str, LowRank]:
    """Read an adapter that `save_lora_weights` of a Diffusers pipeline wrote.

    The scale of a layer is alpha / r by the metadata of the file (`lora_adapter_metadata`), by its keys `*.alpha`, or 1
    where it has neither, as `load_lora_weights` reads it.

    Args:
        source: the file, or a folder with `pytorch_lora_weights.safetensors`.

    Returns:
        Full name of each layer ("unet.mid_block.attentions.0...") -> its update.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged, has keys of another format, or is more than LoRA (DoRA, LoKr).
    """
    path = adapter_file(source)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    _check_names(tensors, path)
    layers: dict[str, LowRank] = {}
    for down, up in _ENDINGS:
        for name in [key.removesuffix(down) for key in tensors if key.endswith(down)]:
            if name + up not in tensors:
                raise ValueError(f"{path}: {name}{up} is missing.")
            a, b = tensors[name + down], tensors[name + up]
            layers[name] = LowRank(a, b, scale=_scale(name, a.shape[0], tensors, metadata))
    return layers


def write_adapter(layers: Mapping[str, LowRank], folder: str | os.PathLike[str]) -> Path:
    """Write an adapter that `load_lora_weights` of a Diffusers pipeline reads.

    Scales go into B, so that alpha is the rank: then no reader needs to know it.

    Args:
        layers: full names and updates, as `read_adapter` gives them.
        folder: made where it is missing; an adapter in it is replaced.

    Returns:
        The file.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> layers = {"unet.to_q": LowRank(torch.ones(1, 2), torch.ones(2, 1), scale=3.0)}
        >>> with TemporaryDirectory() as folder:
        ...     read_adapter(write_adapter(layers, folder))["unet.to_q"].delta()[0]
        tensor([3., 3.])
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{name}.lora_A.weight"] = layer.a.detach().cpu().contiguous()
        scaled = (layer.scale * layer.b.float()).to(layer.b.dtype) if layer.scale != 1 else layer.b
        tensors[f"{name}.lora_B.weight"] = scaled.detach().cpu().contiguous()
    return write_whole(Path(folder) / LORA_WEIGHT_NAME_SAFE, save(tensors, metadata={"format": "pt"}))


def merge_adapters(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
) -> float:
    """Merge adapters of one base model into one adapter: sum_i w_i (alpha_i / r_i) B_i A_i in every layer.

    Args:
        sources: files or folders of the adapters.
        folder: where `pytorch_lora_weights.safetensors` goes.
        weights: w_i; None for 1 / n each, the mean of the experts (SELMA, Li et al. 2024, arXiv 2403.06952).
        rank: of the result; None for the exact sum, whose rank is the sum of theirs.

    Returns:
        The share of the sum that a smaller rank has lost, in the Frobenius norm over all layers; 0 without `rank`.

    Raises:
        FileNotFoundError: when one is missing.
        ValueError: for adapters of different base models, and as `merge_updates`.
    """
    experts = [read_adapter(source) for source in sources]
    weights = equal_weights(len(experts)) if weights is None else weights
    exact = merge_updates(experts, weights)
    merged = exact if rank is None else merge_updates(experts, weights, rank=rank)
    write_adapter(merged, folder)
    return 0.0 if rank is None else lost_share(exact, merged)


def equal_weights(number: int) -> list[float]:
    """1 / n, n times."""
    return [1 / number] * number


def adapter_file(source: str | os.PathLike[str]) -> Path:
    """The file of an adapter.

    Raises:
        FileNotFoundError: when it is missing.
    """
    path = Path(source)
    path = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no adapter at {path}: expected a file, or a folder with one.")
    return path


def fuse(pipe: Any, folder: str | os.PathLike[str]) -> Any:
    """Add an adapter to the weights of a pipeline, which then needs no LoRA.

    Args:
        pipe: a Diffusers pipeline with `load_lora_weights`; changed in place.
        folder: of the adapter.

    Returns:
        The pipeline.

    Raises:
        ValueError: for a pipeline that takes none.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA: it has no load_lora_weights.")
    pipe.load_lora_weights(str(adapter_file(folder)))
    changed = {key.partition(".")[0] for key in read_adapter(folder)}
    pipe.fuse_lora(components=sorted(changed))
    pipe.unload_lora_weights()
    return pipe


def _check_names(tensors: Mapping[str, Tensor], path: Path) -> None:
    known = tuple(ending for pair in _ENDINGS for ending in pair) + (_ALPHA,)
    foreign = [key for key in tensors if not key.endswith(known) or key.partition(".")[0] not in COMPONENTS]
    if foreign or not tensors:
        example = foreign[0] if foreign else "no tensor"
        raise ValueError(
            f"{path} is not an adapter as Diffusers writes plain LoRA (found {example!r}): load it with its pipeline's "
            "load_lora_weights and write it with save_lora_weights first."
        )


def _scale(name: str, rank: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> float:
    """What the product of the factors is multiplied by."""
    component, _, layer = name.partition(".")
    settings = {key.removeprefix(f"{component}."): value for key, value in metadata.items()}
    if settings.get("use_dora"):
        raise ValueError(f"{name} was trained with DoRA, which is no sum of low-rank updates.")
    if name + _ALPHA in tensors:
        return float(tensors[name + _ALPHA]) / rank
    if f"{component}.lora_alpha" not in metadata:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), layer), settings["lora_alpha"])
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
