"""The mathematics knows nothing of images."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import fk_reward

PARTICLE_LAYER = (
    "value_checks",
    "smc.potentials",
    "smc.resampling",
    "smc.weights",
    "smc.particle_filter",
    "smc.reward_scale",
    "search.base",
    "search.feynman_kac",
)


@pytest.mark.parametrize("module", PARTICLE_LAYER)
def test_the_particle_layer_imports_torch_and_itself_only(module):
    tree = ast.parse((Path(fk_reward.__file__).parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    allowed = {"torch", "fk_reward.text", *(f"fk_reward.{name}" for name in PARTICLE_LAYER)}
    assert all(name in allowed or name.split(".")[0] in sys.stdlib_module_names for name in names), names
