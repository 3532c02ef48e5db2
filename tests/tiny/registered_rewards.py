"""The registered rewards as they can be built offline, on small random files in the official layouts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from fk_reward.rewards import Reward, load_reward
from tests.tiny.scripted_detectors import ScriptedReader, ScriptedSession, scripted_judge
from tests.tiny.scripted_judge import ScriptedEngine


def _llava(name: str, tiny: SimpleNamespace) -> dict[str, Any]:
    """On one backbone for all dimensions, as the hub has them."""
    files = tiny.qwen if name.endswith("@qwen") else tiny.phi
    return {"backbone": files.backbone, "adapter": files.adapters, "torch_dtype": torch.float32}


def _answering(name: str, tiny: SimpleNamespace) -> dict[str, Any]:
    return {"model": tiny.llava, "torch_dtype": torch.float32}


def _judge(name: str, tiny: SimpleNamespace) -> dict[str, Any]:
    return {"engine": ScriptedEngine()}


def _author_judge(name: str, tiny: SimpleNamespace) -> dict[str, Any]:
    return {"engine": ScriptedEngine(), "words": getattr(tiny.words, name.rpartition("-")[2])}


DIMENSIONS = ("alignment", "fidelity", "safety", "overall")
OPTIONS: dict[str, Callable[[str, SimpleNamespace], dict[str, Any]]] = {
    "aesthetic": lambda name, tiny: {"weights": tiny.aesthetic_head, "model": tiny.clip},
    "aesthetic-v2.5": lambda name, tiny: {"weights": tiny.siglip_head, "model": tiny.siglip},
    "blip-itm": lambda name, tiny: {"model": tiny.blip_itm},
    "clipscore": lambda name, tiny: {"model": tiny.clip},
    "cyclereward": lambda name, tiny: {"weights": tiny.cyclereward, "tokenizer": tiny.imagereward / "tokenizer"},
    "geneval": lambda name, tiny: {"judge": scripted_judge(), "prompts": tiny.geneval_records},
    "hpsv2": lambda name, tiny: {"weights": tiny.hps, "tokenizer": tiny.clip},
    "hpsv2.1": lambda name, tiny: {"weights": tiny.hps, "tokenizer": tiny.clip},
    "hpsv3": lambda name, tiny: {
        "weights": tiny.hpsv3.weights,
        "words": tiny.hpsv3.words,
        "model": tiny.hpsv3.base,
        "torch_dtype": torch.float32,
    },
    "image-classifier": lambda name, tiny: {"model": tiny.classifier, "label": "normal"},
    "imageguard": _author_judge,
    "imagereward": lambda name, tiny: {"weights": tiny.imagereward, "tokenizer": tiny.imagereward / "tokenizer"},
    "llava-reward": lambda name, tiny: _llava(name, tiny) | {"dimension": "alignment"},
    **{f"llava-reward-{dimension}": _llava for dimension in DIMENSIONS},
    **{f"llava-reward-{dimension}@qwen": _llava for dimension in DIMENSIONS},
    "llava-score": _answering,
    "nudenet": lambda name, tiny: {"session": ScriptedSession()},
    "ocr": lambda name, tiny: {"reader": ScriptedReader(), "target": "whole"},
    "perspectivevision": lambda name, tiny: {
        "words": tiny.unsafe_words,
        "adapter": tiny.llava_lora,
        "model": tiny.guard_llava,
        "torch_dtype": torch.float32,
    },
    "pickscore": lambda name, tiny: {"model": tiny.clip, "processor": tiny.clip},
    "q-align": _answering,
    "shieldgemma-2": lambda name, tiny: {"model": tiny.shieldgemma2, "torch_dtype": torch.float32},
    "unified-reward": lambda name, tiny: {
        "words": tiny.words.unified,
        "model": tiny.qwen3_vl,
        "torch_dtype": torch.float32,
    },
    "vqascore": lambda name, tiny: _answering(name, tiny) | {"against": "No"},
    **{f"vlm-judge{kind}": _judge for kind in ("", "-alignment", "-preference", "-safety")},
    **{f"vlm-judge-{kind}": _author_judge for kind in ("evalalign", "llavaguard", "viescore")},
}
"""Name -> options from the files of the fixture `tiny_files`. What comes with the package needs no line."""


def build(name: str, tiny: SimpleNamespace, **more: Any) -> Reward:
    """Load a registered reward offline; `more` options go over those that make it small."""
    options = OPTIONS[name](name, tiny) if name in OPTIONS else {}
    return load_reward(name, **options | more)
