"""`__all__` of each package is exactly what its `__init__` offers, as in encode/httpx's test of exported members."""

from __future__ import annotations

import importlib
import types

import pytest

from tests.repository.layout import packages


def public_names(module: types.ModuleType) -> set[str]:
    """Names without a leading underscore that are neither submodules nor `from __future__` features."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }


def export_mistakes(module: types.ModuleType) -> list[str]:
    """Names exported but missing, names offered but not exported, and disorder."""
    exported = list(getattr(module, "__all__", []))
    mistakes = [f"{name} is in __all__ but does not resolve" for name in exported if not hasattr(module, name)]
    mistakes += [f"{name} is public but not in __all__" for name in sorted(public_names(module) - set(exported))]
    if len(set(exported)) != len(exported):
        mistakes.append("__all__ names something twice")
    return mistakes


@pytest.mark.parametrize("package", packages())
def test_exports_are_the_public_names(package):
    assert export_mistakes(importlib.import_module(package)) == []


def test_mistakes_are_noticed():
    module = types.ModuleType("broken")
    module.__dict__.update(kept=1, forgotten=2, __all__=["kept", "kept", "missing"])
    assert len(export_mistakes(module)) == 3


def test_the_public_names_of_the_package():
    fk_reward = importlib.import_module("fk_reward")
    assert set(fk_reward.__all__) == {
        "BatchSizes",
        "FKSteeringConfig",
        "FKSteeringOutput",
        "FKSteeringPipeline",
        "ParticleFilter",
        "Reward",
        "RewardCard",
        "SteeringRecord",
        "SteeringTrace",
        "TraceStep",
        "__version__",
        "available_rewards",
        "load_reward",
        "steer",
    }
