"""One pipeline class of Diffusers as a tiny random instance, and how to call it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

Conditions = Callable[[list[str]], dict[str, Any]]
"""Prompts to the arguments that state them: `{"prompt": ...}`, or embeddings where no tokenizer can be made offline."""


def as_text(prompts: list[str]) -> dict[str, Any]:
    """The prompts themselves."""
    return {"prompt": list(prompts)}


def with_negative(prompts: list[str]) -> dict[str, Any]:
    """The prompts, each with a negative one, for pipelines that do not spread a single one over all."""
    return {"prompt": list(prompts), "negative_prompt": ["ugly"] * len(prompts)}


@dataclass(frozen=True)
class Family:
    """A tiny pipeline and its call.

    Attributes:
        make: builds the pipeline on the CPU in float32, the same at every call; within about a second.
        arguments: of every call, besides prompt, `num_inference_steps`, `generator`, `num_images_per_prompt` and
            `output_type`.
        conditions: see `Conditions`.
        note: what a user should know, for the table of the docs.
        one_generator: the pipeline takes no list of generators.
        encodes: the first image's generator also draws for the encoding of an image that all prompts share.
    """

    make: Callable[[], DiffusionPipeline]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    conditions: Conditions = as_text
    note: str = ""
    one_generator: bool = False
    encodes: bool = False

    def build(self) -> DiffusionPipeline:
        """A fresh pipeline; the global generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.make()
            for component in pipe.components.values():
                if isinstance(component, torch.nn.Module):
                    _awaken(component.eval())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call_arguments(self, prompts: list[str]) -> dict[str, Any]:
        """Arguments of a call with these prompts."""
        return {**self.arguments, **self.conditions(prompts)}


def _awaken(module: torch.nn.Module) -> None:
    """Give weights that begin at zero a value: behind a closed gate no prompt and no ControlNet would matter."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)


def embedded(prompts: Sequence[str], *shape: int) -> Tensor:
    """Random embeddings `(len(prompts), *shape)`; the same text gets the same one.

    Example:
        >>> embedded(["a", "b", "a"], 2).unique(dim=0).shape
        torch.Size([2, 2])
    """
    generators = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def mask_of(prompts: Sequence[str], length: int) -> Tensor:
    """Attention masks `(len(prompts), length)`, int64: as many ones as the text has words.

    Example:
        >>> mask_of(["a red circle", "dots"], 4).tolist()
        [[1, 1, 1, 0], [1, 0, 0, 0]]
    """
    words = torch.tensor([len(prompt.split()) for prompt in prompts])
    return (torch.arange(length) < words[:, None]).long()
