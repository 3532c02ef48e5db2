"""One constant says which reward steers the embedded model by default; commands and first snippets follow it."""

from __future__ import annotations

import inspect
import re

import pytest

from fk_reward.cli.demo import demo
from fk_reward.cli.generate import Request
from fk_reward.cli.score import score
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import available_rewards
from tests.repository.layout import ROOT


def first_reward(text):
    """The reward of the first snippet that loads the embedded model."""
    return re.search(r'from_pretrained\("shapes-sd", reward="([^"]+)"\)', text)[1]


def test_it_is_a_known_reward():
    assert DEFAULT_EMBEDDED_REWARD in available_rewards()


@pytest.mark.parametrize("command", [demo, Request, score])
def test_commands_default_to_it(command):
    assert inspect.signature(command).parameters["reward"].default == DEFAULT_EMBEDDED_REWARD


@pytest.mark.parametrize("page", ["README.md", "docs/trace.md", "pipelines/fk_steering_pipeline.py"])
def test_first_snippets_show_it(page):
    assert first_reward((ROOT / page).read_text(encoding="utf-8")) == DEFAULT_EMBEDDED_REWARD


def test_another_reward_in_a_snippet_is_noticed():
    assert first_reward('FKSteeringPipeline.from_pretrained("shapes-sd", reward="other")') != DEFAULT_EMBEDDED_REWARD
