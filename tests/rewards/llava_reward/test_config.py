"""The config of a checkpoint: round trips, and refusal of what it does not know."""

from __future__ import annotations

import json

import pytest

from fk_reward.rewards.llava_reward.config import LlavaRewardConfig

BASE = {"dimension": "safety", "backbone": "phi3_v", "base_model": "somewhere"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "binary", "cross_attention": False, "temperature": 1},
        {"objective": "general-preference", "value_head_dim": 4},
        {"attends_to": "nothing", "backbone_options": {"num_crops": 4, "max_pixels": None}},
    ],
)
def test_round_trips(settings):
    config = LlavaRewardConfig(**BASE, **settings)
    assert LlavaRewardConfig.from_dict(config.to_dict()) == config
    assert LlavaRewardConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json()) == config.to_dict()
    assert LlavaRewardConfig.from_json(config.to_json()) != LlavaRewardConfig(**BASE | {"dimension": "fidelity"})


def test_the_dict_is_a_copy():
    config = LlavaRewardConfig(**BASE, backbone_options={"num_crops": 4})
    config.to_dict()["backbone_options"]["num_crops"] = 5
    assert config.backbone_options == {"num_crops": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension": "a.b"}, "dimension may have letters"),
        ({"dimension": ""}, "dimension may have letters"),
        ({"base_model": ""}, "base_model must not be empty"),
        ({"objective": "bt"}, "bradley-terry, binary, general-preference, got 'bt'"),
        ({"attends_to": "text"}, "visual, nothing, got 'text'"),
        ({"attends_to": "nothing", "cross_attention": False}, "cross_attention is False"),
        ({"temperature": 0.0}, "positive and finite"),
        ({"temperature": float("nan")}, "positive and finite"),
        ({"temperature": float("inf")}, "positive and finite"),
        ({"value_head_dim": 2}, "must be 1 for objective 'bradley-terry', got 2"),
        ({"objective": "binary", "value_head_dim": 0}, "must be 1"),
        ({"objective": "general-preference", "value_head_dim": 3}, "must be even for general preferences, got 3"),
        ({"objective": "general-preference", "value_head_dim": 0}, "must be even"),
        ({"objective": "general-preference"}, "must be even for general preferences, got 1"),
    ],
)
def test_wrong_values(settings, message):
    with pytest.raises(ValueError, match=message):
        LlavaRewardConfig(**BASE | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"dimension": 3},
        {"value_head_dim": True},
        {"value_head_dim": 1.0},
        {"cross_attention": 1},
        {"cross_attention": "false"},
        {"temperature": "0.1"},
        {"temperature": True},
        {"backbone_options": None},
    ],
)
def test_wrong_types(settings):
    name = next(iter(settings))
    with pytest.raises(TypeError, match=f"{name} must be of type"):
        LlavaRewardConfig(**BASE | settings)


def test_unknown_and_absent_keys():
    with pytest.raises(ValueError, match=r"Unknown keys \['tau'\]"):
        LlavaRewardConfig.from_dict(BASE | {"tau": 0.1})
    with pytest.raises(ValueError, match=r"Missing keys \['backbone', 'base_model'\]"):
        LlavaRewardConfig.from_dict({"dimension": "safety"})


@pytest.mark.parametrize("text", ["", "{", "[1]", '"safety"'])
def test_text_that_is_no_object(text):
    with pytest.raises(ValueError, match="Expect"):
        LlavaRewardConfig.from_json(text)
