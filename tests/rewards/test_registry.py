"""Names, options and entry points."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from fk_reward.rewards import (
    REWARDS,
    CallableReward,
    Reward,
    RewardCard,
    RewardEntry,
    RewardLoadError,
    available_rewards,
    load_reward,
    registry,
    reward_card,
)

CARD = RewardCard(name="brightness", summary="mean of all pixels")


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def build_brightness(*, batch_size: int | None = None, name: str = "brightness"):
    return CallableReward(brightness, name, batch_size=batch_size)


@pytest.fixture
def plugin(monkeypatch):
    """A module as another package would install it."""
    module = types.ModuleType("outside_rewards")
    module.BRIGHTNESS = RewardEntry(CARD, build_brightness)
    module.OTHER = RewardEntry(CARD, build_brightness)
    module.NO_ENTRY = build_brightness
    module.NO_REWARD = RewardEntry(CARD, lambda: brightness)
    monkeypatch.setitem(sys.modules, "outside_rewards", module)


@pytest.fixture
def register(monkeypatch, plugin):
    """Pretend that installed packages declare these entry points."""

    def _register(*pairs):
        points = [metadata.EntryPoint(name, value, "fk_reward.rewards") for name, value in pairs]
        monkeypatch.setattr(metadata, "entry_points", lambda *, group: points if group == "fk_reward.rewards" else [])

    return _register


def test_own_rewards_are_listed():
    assert set(REWARDS) <= set(available_rewards())


def test_own_cards_carry_their_names():
    for name in ("clipscore", "shapes-clipscore"):
        assert reward_card(name).name == name


def test_cards_need_no_transformers():
    code = """
import sys
import fk_reward.rewards as rewards
before = set(sys.modules)
for name in ("clipscore", "shapes-clipscore"):
    rewards.reward_card(name)
new = [name for name in set(sys.modules) - before if name.split(".")[0] in ("transformers", "diffusers")]
sys.exit(", ".join(new) or None)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown reward 'clip-score'\. Did you mean 'clipscore'\?.*shapes-verifier"):
        load_reward("clip-score")
    with pytest.raises(ValueError, match=r"'qqq'\. Known rewards: .*clipscore"):
        reward_card("qqq")


def test_entry_points_are_found(register):
    register(("brightness", "outside_rewards:BRIGHTNESS"))
    assert "brightness" in available_rewards()
    assert reward_card("brightness") is CARD
    reward = load_reward("brightness", batch_size=2)
    assert reward.batch_size == 2
    assert reward(torch.ones(1, 3, 4, 4), "a").tolist() == [1.0]


def test_unknown_options_name_the_accepted_ones(register):
    register(("brightness", "outside_rewards:BRIGHTNESS"))
    with pytest.raises(TypeError, match="'brightness'.*'batchsize'.*accepts: batch_size, name"):
        load_reward("brightness", batchsize=2)


def test_an_error_inside_a_factory_is_not_blamed_on_the_options(register, monkeypatch):
    def build():
        raise TypeError("the factory's own mistake")

    monkeypatch.setattr(sys.modules["outside_rewards"], "BRIGHTNESS", RewardEntry(CARD, build))
    register(("brightness", "outside_rewards:BRIGHTNESS"))
    with pytest.raises(TypeError, match=r"^the factory's own mistake$"):
        load_reward("brightness")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:X", "ModuleNotFoundError"),
        ("outside_rewards:MISSING", "AttributeError"),
        ("outside_rewards:NO_ENTRY", "must be a RewardEntry, got function"),
    ],
)
def test_a_broken_plugin_breaks_only_itself(register, value, message):
    register(("broken", value), ("brightness", "outside_rewards:BRIGHTNESS"))
    assert {"broken", "brightness", "clipscore"} <= set(available_rewards())
    assert load_reward("brightness").card.name == "brightness"
    for use in (load_reward, reward_card):
        with pytest.raises(RewardLoadError, match=f"'broken'.*{message}"):
            use("broken")


def test_a_factory_must_return_a_reward(register):
    register(("no-reward", "outside_rewards:NO_REWARD"))
    with pytest.raises(TypeError, match="'no-reward' must return a Reward, got function"):
        load_reward("no-reward")


def test_own_names_cannot_be_taken(register, caplog):
    register(("clipscore", "outside_rewards:BRIGHTNESS"))
    assert reward_card("clipscore").name == "clipscore"
    assert "outside_rewards:BRIGHTNESS is not" in caplog.text


def test_of_two_plugins_with_one_name_the_first_is_used(register, caplog):
    register(("b", "outside_rewards:BRIGHTNESS"), ("b", "outside_rewards:OTHER"))
    assert reward_card("b") is sys.modules["outside_rewards"].BRIGHTNESS.card
    assert "Two rewards are called 'b'" in caplog.text


def test_the_message_names_the_package_of_a_plugin(tmp_path, monkeypatch):
    info = tmp_path / "outside_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fk_reward.rewards]\nlost = no_such_module:X\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RewardLoadError, match="'lost' of package 'outside-rewards'"):
        load_reward("lost")


def test_a_reward_comes_back_as_it_is():
    reward = build_brightness()
    assert load_reward(reward) is reward


def test_a_function_is_wrapped():
    reward = load_reward(brightness)
    assert isinstance(reward, CallableReward)
    assert reward.card.name == "brightness"


class NoCard(Reward):
    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("reward", "message"),
    [(NoCard, "the class NoCard"), (NoCard(), "has no card"), (3, "int"), (None, "NoneType")],
)
def test_what_is_no_reward_raises(reward, message):
    with pytest.raises(TypeError, match=message):
        load_reward(reward)


@pytest.mark.parametrize("reward", [brightness, build_brightness()])
def test_options_need_a_name(reward):
    with pytest.raises(TypeError, match="batch_size"):
        load_reward(reward, batch_size=2)


def test_the_group_has_the_documented_name():
    assert registry.ENTRY_POINT_GROUP == "fk_reward.rewards"


SCRIPT = Path(__file__).parents[2] / "examples" / "custom_reward.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("custom_reward_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equals_the_published_formula(example):
    arrays = np.random.default_rng(0).random((3, 8, 9, 3))
    red, green, blue = np.moveaxis(arrays, -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    axes = (1, 2)
    expected = np.hypot(rg.std(axes), yb.std(axes)) + 0.3 * np.hypot(rg.mean(axes), yb.mean(axes))
    np.testing.assert_allclose(example.Colourfulness()(arrays, "any"), expected, rtol=1e-5)


def test_grey_has_no_colour(example):
    assert example.Colourfulness()(torch.full((1, 3, 4, 4), 0.3), "any").item() == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_script_runs(example, tmp_path):
    rewards = example.main(num_particles=2, steps=5, out=tmp_path / "best.png")
    assert rewards.shape == (1, 2)
    assert rewards[0, 0] >= rewards[0, 1]
    assert (tmp_path / "best.png").stat().st_size > 0
