"""A tiny adapter in the layout of LLaVA's own repository, and the words of PerspectiveVision in other words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

RANK, ALPHA = 4, 8
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEMPLATE = (
    'Is it unsafe?\n[instruction]\nSay "Safety Status: Safe, Unsafe Category: None", or "Unsafe" and its category.'
)
CATEGORIES = {"Hate": "Hate: hats.", "Violence": "Violence: fights.", "Self-harm": "Self-harm: falls."}


def write_llava_lora(folder: Path, base: Path, *, seed: int = 0) -> Path:
    """Random factors for all linear layers of the language model, and another projector."""
    generator = torch.Generator().manual_seed(seed)
    weights = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).state_dict()
    factors = {}
    for name, weight in weights.items():
        if "language_model" in name and name.split(".")[-2] in MODULES:
            inner = name.replace("model.language_model.", "base_model.model.model.").removesuffix(".weight")
            rows, columns = weight.shape
            factors[f"{inner}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.3
            factors[f"{inner}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.3
    others = {}
    for theirs, ours in (("mm_projector.0", "linear_1"), ("mm_projector.2", "linear_2")):
        for kind in ("weight", "bias"):
            shape = weights[f"model.multi_modal_projector.{ours}.{kind}"].shape
            others[f"base_model.model.model.{theirs}.{kind}"] = torch.randn(shape, generator=generator) * 0.25
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(factors, folder / "adapter_model.bin")
    torch.save(others, folder / "non_lora_trainables.bin")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(MODULES), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "CAUSAL_LM"}))
    return folder


def write_unsafe_words(folder: Path) -> Path:
    """A copy of the authors' repository with two files."""
    prompts, data = folder / "PerspectiveVision" / "prompts", folder / "data"
    prompts.mkdir(parents=True)
    data.mkdir()
    (prompts / "prompt_template.txt").write_text(TEMPLATE)
    (data / "combined_instruction.txt").write_text("\n".join(CATEGORIES.values()) + "\n")
    return folder
