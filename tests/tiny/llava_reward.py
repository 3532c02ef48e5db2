"""LLaVA-Reward in small: a tiny backbone and official checkpoints for it, laid out as on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fk_reward.rewards import load_reward
from tests.tiny.llava_next import write_llava_next
from tests.tiny.official_reward import write_official_reward
from tests.tiny.phi3_vision import write_phi3_vision
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl

WRITERS = {"phi3_v": write_phi3_vision, "qwen2_5_vl": write_qwen2_5_vl, "llava_next": write_llava_next}


@dataclass(frozen=True)
class Tiny:
    """A backbone's folder and a folder with its official checkpoints, one a dimension, as the hub repository has it."""

    model_type: str
    backbone: Path
    adapters: Path

    def load(self, dimension="alignment", **options):
        options = {"torch_dtype": torch.float32, "dimension": dimension} | options
        return load_reward("llava-reward", backbone=self.backbone, adapter=self.adapters, **options)


def write_tiny(folder, model_type, *, general_preference=("overall",)):
    """A backbone and four dimensions on it: with SkipCA where the official code has it, but for general preferences."""
    backbone = WRITERS[model_type](folder / "backbone")
    short = {"phi3_v": "phi", "qwen2_5_vl": "qwen", "llava_next": "llava"}[model_type]
    for seed, dimension in enumerate(("alignment", "fidelity", "safety", "overall")):
        write_official_reward(
            folder / "official" / dimension / f"llavareward_{short}_{dimension}",
            backbone=backbone,
            model_type=model_type,
            seed=seed,
            add_cross_attention=model_type != "llava_next" and dimension not in general_preference,
            is_general_preference=dimension in general_preference,
            value_head_dim=4 if dimension in general_preference else 1,
        )
    return Tiny(model_type, backbone, folder / "official")
