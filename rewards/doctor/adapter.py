"""Does the adapter of a LLaVA-Reward change anything?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe, parts_of
from fk_reward.rewards.llava_reward.llava_reward import LlavaReward


def _examine(patient: Patient) -> Finding:
    rewards = [part for part in parts_of(patient.reward) if isinstance(part, LlavaReward)]
    if not rewards:
        return not_applicable("it is no LLaVA-Reward.")
    counts = {f"{reward.card.name}": _changed(reward) for reward in rewards}
    observed = "; ".join(f"{changed} of {total} layers are changed" for changed, total in counts.values())
    if all(total == 0 for _, total in counts.values()):
        return not_applicable("it was trained without LoRA.")
    if all(changed for changed, total in counts.values() if total):
        return passed(f"{observed}.")
    return failed(
        f"{observed}: the product of the two LoRA matrices is zero.",
        remedy="The adapter is untrained or was not read: look for keys in adapter_model.safetensors that end in "
        "lora_A.weight and lora_B.weight, and load the folder of the trained checkpoint, not that of its beginning.",
    )


def _changed(reward: LlavaReward) -> tuple[int, int]:
    """Layers whose LoRA is not zero, and all that have one."""
    key = reward._key(reward.dimension)
    weights = reward.model.adapters.parameters_of(key)
    modules = {name.rpartition(".lora_")[0] for name in weights}
    return sum(_is_something(weights, module) for module in modules), len(modules)


def _is_something(weights: Mapping[str, Tensor], module: str) -> bool:
    factors = [weights[f"{module}.lora_{factor}.weight"] for factor in "AB"]
    return all(bool(factor.any()) for factor in factors)


ADAPTER = Probe("Does the adapter change the language model?", _examine)
