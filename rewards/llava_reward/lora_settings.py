"""Which settings of a LoRA adapter can be used on a backbone that all dimensions share, and so may never change.

PEFT initialises a new adapter before its weights are read. Some initialisations take a part of the base weights into
the adapter, other settings replace modules or repeat layers: on a shared backbone, that would change every other
dimension. Weights that were trained after such an initialisation belong to a base model that was changed by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import peft
from peft import LoraConfig

LEAVE_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that write to the adapter alone; so do True and False."""

CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations after which the base weights are others; `pissa_niter_16` and the like are meant by the first."""

_UNDERSTOOD = frozenset(
    (
        *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
        *("inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
        *(
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
        ),
        *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    )
)
"""Fields of `LoraConfig` that may have any value: they say which plain LoRA it is, or how it was initialised."""


def check_lora_settings(settings: Mapping[str, Any]) -> None:
    """Refuse an adapter that is more than plain LoRA, or whose weights belong to a changed base model.

    Args:
        settings: fields of a `LoraConfig`, as its `to_dict` or `adapter_config.json` has them.

    Raises:
        ValueError: it names the setting, and says what to do.

    Example:
        >>> check_lora_settings({"peft_type": "LORA", "r": 8, "init_lora_weights": "eva", "bias": "none"})
        >>> check_lora_settings({"use_dora": True})
        Traceback (most recent call last):
        ValueError: use_dora=True is not plain LoRA, which is all that a LLaVA-Reward is made of.
    """
    _check_initialisation(settings.get("init_lora_weights", True))
    defaults = LoraConfig().to_dict()
    for name, value in settings.items():
        if name in _UNDERSTOOD or not value or value == defaults.get(name):
            continue
        if name not in defaults:
            raise ValueError(f"{name}={value!r} is not known to PEFT {peft.__version__}: it may need a newer one.")
        raise ValueError(f"{name}={value!r} is not plain LoRA, which is all that a LLaVA-Reward is made of.")


def _check_initialisation(value: Any) -> None:
    name = value.lower() if isinstance(value, str) else value
    if isinstance(name, bool) or name in LEAVE_THE_BASE:
        return
    if isinstance(name, str) and name.startswith(CHANGE_THE_BASE):
        raise ValueError(
            f"init_lora_weights={value!r}: such an adapter is trained on a base model that PEFT has changed, and "
            "adding it would change the backbone that all dimensions share. Save it as plain LoRA, with "
            "PeftModel.save_pretrained(..., path_initial_model_for_weight_conversion=<the adapter as it began>), or "
            "merge it into a backbone of its own (for LoftQ the only way)."
        )
    known = ", ".join(map(repr, LEAVE_THE_BASE))
    raise ValueError(f"init_lora_weights should be True, False or one of {known}, got {value!r}.")
