"""The host's time at full size: networks that are not run again, counts of a known model, and what is left out."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from examples.benchmarks import reward_host_work
from fk_reward.benchmarks.rewards import host_time
from fk_reward.benchmarks.rewards.host_time import CountedAttention, HostTime, ReplayedNetworks, host_row
from fk_reward.planning.meta_device import count_flops
from fk_reward.rewards import Reward, RewardCard, load_reward
from tests.examples.scripts import invoke

PROMPT = "a photo of cat 000 000"


class Slow(nn.Module):
    """Doubles; `calls` has what it was given."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.inner = nn.Identity()

    def forward(self, x):
        self.calls.append(x)
        return self.inner(2 * x)


def test_networks_are_not_run_again_and_answer_in_their_order():
    first, second, own = Slow(), Slow(), nn.Module.__call__

    def work(x):
        return first(x) + 10 * second(x) + 100 * first(x + 1)

    with ReplayedNetworks() as networks:
        expected = work(torch.ones(1))
        assert torch.equal(networks.replay(work, torch.zeros(1)), expected)
        assert torch.equal(networks.replay(second, torch.zeros(1)), torch.tensor([2.0])), "one may be left out"
        with pytest.raises(LookupError, match="Slow is called more often"):
            networks.replay(lambda: [second(torch.zeros(1)) for _ in range(2)])
    assert (len(first.calls), len(second.calls)) == (2, 1)
    assert nn.Module.__call__ is own
    with pytest.raises(ZeroDivisionError), ReplayedNetworks():
        first(1 / 0)
    assert nn.Module.__call__ is own


def test_counts_are_those_of_the_model():
    reward = load_reward("shapes-clipscore")
    config = reward.model.config
    row = host_row("shapes-clipscore", 2, 64, repeats=1)
    assert row["attention_calls"] == config.vision_config.num_hidden_layers + config.text_config.num_hidden_layers
    assert row["gflops"] == pytest.approx(count_flops(reward, 64, PROMPT) / 1e9)
    assert 0 < row["known"] < 1000


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Spinning(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        spin(0.05)
        return x.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("on_the_host", [False, True])
def test_work_of_a_network_is_not_timed_and_that_of_the_host_is(monkeypatch, on_the_host):
    class Around(Reward):
        card = RewardCard(name="around", summary="a network and perhaps work of the host")

        def __init__(self):
            self.network = Spinning()

        def score(self, images, prompts):
            if on_the_host:
                spin(0.05)
            return self.network(images)

    monkeypatch.setattr("fk_reward.benchmarks.rewards.host_time.is_at_hand", lambda name: True)
    monkeypatch.setattr("fk_reward.benchmarks.rewards.host_time.load_reward", lambda name: Around())
    milliseconds = host_row("around", 1, 8, repeats=2)["known"]
    assert (milliseconds > 45) == on_the_host


def test_what_measuring_takes_is_taken_off(monkeypatch):
    clock = [0.0]

    def asked():
        clock[0] += 1  # each look at the clock takes time itself
        return clock[0]

    monkeypatch.setattr(host_time, "time", SimpleNamespace(process_time=asked))
    host_time._seconds_of_a_call.cache_clear()
    tensor = torch.ones(2, device="meta")
    try:
        with HostTime() as host:
            for _ in range(50):
                tensor.neg()
            clock[0] += 1000  # the host's own work
            torch.ones(3)
        assert host.launches == 50
        assert host.seconds == pytest.approx(1000, abs=10)
        assert host.measured[0] > 1050, "without it, measuring would count"
    finally:
        host_time._seconds_of_a_call.cache_clear()


def test_a_function_that_launches_takes_no_time_of_the_host():
    images = torch.empty(1, 3, 8, 8, device="meta")
    with HostTime() as host:
        nn.functional.interpolate(images, (4, 4), mode="bicubic", antialias=True)
    assert host.launches == 1
    assert host.seconds < 0.005


def test_one_call_of_attention_a_layer():
    q = torch.zeros(1, 1, 2, 4)
    with CountedAttention() as attention:
        for _ in range(3):
            nn.functional.scaled_dot_product_attention(q, q, q)
    assert attention.calls == 3


@pytest.mark.parametrize(
    ("name", "note"),
    [("vlm-judge", "by its processor"), ("shapes-verifier", "no network"), ("llava-reward", "not computed")],
)
def test_what_is_left_out_says_why(name, note):
    assert note in host_row(name, 1, 64, repeats=1)["note"]


def test_the_table():
    options = ("--full-size", "--reward", "shapes-clipscore", "--num-images", "1", "--side", "64", "--repeats", "1")
    table = invoke(reward_host_work.main, *options, "--markdown")
    assert "| `shapes-clipscore` |" in table
    assert "known prompts" in table


def test_what_the_watch_takes_is_taken_off():
    """Small operations, of which being watched takes many times as long as they do."""
    assert min(_left_of_the_watch() for _ in range(4)) < 0.5, "a machine that changes its pace is asked again"


def _left_of_the_watch() -> float:
    """What is not taken off, or too much, as a part of what the watch takes; measured anew."""
    host_time._seconds_of_a_call.cache_clear()
    host_time._seconds_of_an_operation.cache_clear()
    tensor, found = torch.ones(1), []
    for _ in range(40):
        started = time.process_time()
        for _ in range(50):
            tensor.neg()
        alone = time.process_time() - started
        with HostTime() as host:
            for _ in range(50):
                tensor.neg()
        found.append((alone, host.seconds, host.measured[0]))
    alone, taken_off, watched = map(min, zip(*found, strict=True))
    return abs(taken_off - alone) / (watched - alone)
