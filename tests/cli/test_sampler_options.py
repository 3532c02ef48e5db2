"""What the options of the sampler show as their defaults is what `FKSteeringConfig` has, in every command."""

from __future__ import annotations

import importlib
import inspect
from typing import get_args, get_type_hints

import pytest

from fk_reward import FKSteeringConfig
from fk_reward.cli import sampler_options
from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.resampling import RESAMPLERS

COMMANDS = {
    "fk_reward.cli.generate": "generate",
    "fk_reward.cli.geneval": "geneval",
    "examples.benchmarks.shapes_cost": "main",
}
OPTIONS = {name.lower(): option for name, option in vars(sampler_options).items() if name.isupper()}
ABSENT = {"final_particles": "all", "stop_reward": "none"}
"""What is shown where the default is None."""


@pytest.mark.parametrize("name", OPTIONS)
def test_shown_is_the_default_of_the_config(name):
    default = FKSteeringConfig().to_dict()[name]
    if default is None:
        assert OPTIONS[name].show_default == ABSENT[name]
    else:
        assert type(default)(OPTIONS[name].show_default) == default


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_use_them_and_default_to_what_is_shown(module):
    command = getattr(importlib.import_module(module), COMMANDS[module])
    hints, config = get_type_hints(command, include_extras=True), FKSteeringConfig().to_dict()
    used = [name for name in inspect.signature(command).parameters if name in OPTIONS]
    assert len(used) >= 6
    for name in used:
        default = inspect.signature(command).parameters[name].default
        assert OPTIONS[name] in get_args(hints[name]), name
        assert default is None or type(config[name])(default) == config[name], name


def test_choices_are_all_there():
    assert all(name in OPTIONS["potential"].help for name in POTENTIALS)
    assert all(name in OPTIONS["resampling"].help for name in RESAMPLERS)
