"""The table of the doctor: sound rewards are healthy, each defect is found, and a surprise is an exit code."""

from __future__ import annotations

import pytest
import torch

from examples.benchmarks import reward_doctor
from examples.benchmarks.reward_doctor import DEFECTS, Broken, adapter_of_zeros, main
from fk_reward.planning.planned_models import is_at_hand
from fk_reward.rewards import load_reward
from fk_reward.rewards.doctor import PROBES, examine
from tests.examples.scripts import invoke


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found_by_the_probe_that_is_meant_for_it(defect):
    name, probe, spoil = DEFECTS[defect]
    sound, probes = load_reward(name), {probe: PROBES[probe]}
    assert examine(Broken(sound, spoil), probes=probes).failures == [probe]
    assert examine(Broken(sound, lambda reward, *inputs: reward(*inputs)), probes=probes).is_healthy


def test_an_adapter_of_zeros_is_put_back():
    reward = load_reward("shapes-llava-reward-alignment")
    image, prompt = torch.rand(1, 3, 64, 64), "a photo of a red circle"
    before = reward(image, prompt)
    with adapter_of_zeros(reward):
        assert not torch.equal(reward(image, prompt), before)
        assert examine(reward, probes={"adapter": PROBES["adapter"]}).failures == ["adapter"]
    assert torch.equal(reward(image, prompt), before)


@pytest.mark.slow
def test_the_table(monkeypatch):
    """Of two sound rewards and one defect: the others are held here and by tests/rewards/doctor/test_examination.py."""
    assert is_at_hand("shapes-llava-reward-safety") and not is_at_hand("clipscore")
    sound = ("shapes-clipscore", "shapes-verifier")
    monkeypatch.setattr(reward_doctor, "is_at_hand", sound.__contains__)
    monkeypatch.setattr(reward_doctor, "DEFECTS", {"upside down": DEFECTS["upside down"]})
    table = invoke(main, "--markdown")
    assert table.count("| none | - |") == len(sound)
    for name in sound:
        assert f"| `{name}` | none | - |" in table
    assert table.count("| found |") == 1 + 2, "the defect, an adapter of zeros, and labels exchanged"
    assert "missed" not in table


def test_a_surprise_is_an_exit_code(monkeypatch):
    row = {"reward": "a", "defect": "b", "meant": "crop", "passed": 3, "failed": "-", "not_applicable": 1}
    monkeypatch.setattr(reward_doctor, "embedded_rows", lambda: iter(()))
    monkeypatch.setattr(reward_doctor, "broken_rows", lambda: iter([row | {"verdict": "missed"}]))
    assert "Not as expected: a, b." in invoke(main, code=1)
