"""Saves models in half the space: float16 on disk, float32 when loaded without a word about the dtype."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import ModelMixin, StableDiffusionPipeline
from torch import nn
from transformers import PreTrainedModel


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
    _forget_origin(folder)


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Saves a pipeline of such models."""
    _halve(pipe.unet)
    _halve(pipe.vae)
    pipe.save_pretrained(folder)
    save_model(pipe.text_encoder, folder / "text_encoder")
    _forget_origin(folder / "vae")


def _forget_origin(folder: Path) -> None:
    """Diffusers notes in a model's config where it was loaded from, which means nothing on another machine."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
