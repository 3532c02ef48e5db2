"""Particles of one prompt in two processes give what one process gives."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from fk_reward.pipelines import particle_share
from fk_reward.pipelines.particle_share import find_exchange
from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.search import load_search
from tests.pipelines.calls import BrightnessReward
from tests.pipelines.spread_call import call, generators, main
from tests.two_processes import launch, start_both


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    launch("tests.pipelines.spread_call", tmp_path, timeout=500)
    main(str(tmp_path))
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    crossed = any(a is not None and ((a // 2) != torch.arange(4) // 2).any() for a in one["ancestors"])
    assert crossed, "no particle moved from one process to the other"
    for two in (first, second):
        torch.testing.assert_close(two["images"], one["images"], rtol=0, atol=1e-5)
        torch.testing.assert_close(two["rewards"], one["rewards"], rtol=0, atol=1e-5)
        assert two["counts"] == one["counts"]
        for name in ("ancestors", "thumbnails"):
            for mine, other in zip(two[name], one[name], strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=1)


HAS_FAILED = "ProcessFailure: Rank 1, which shares this call, has failed: MemoryError: of rank 1"
WRONG = {  # what rank 1 does -> what rank 0 and rank 1 meet with; None where it has no last words
    "prompts": ("rank 0 and rank 1 differ in .*prompt.*squares.*triangles", "differ in .*prompt.*squares.*triangles"),
    "decoder": (HAS_FAILED, "MemoryError: of rank 1"),
    "denoiser": (HAS_FAILED, "MemoryError: of rank 1"),
    "callback": (HAS_FAILED, "MemoryError: of rank 1"),
    "nothing": ("nothing", "nothing"),
    "killed": ("ProcessFailure: Rank 1, .* has given no sign of life for", None),
}


@pytest.mark.slow
def test_one_rank_that_goes_wrong_ends_all(tmp_path):
    """Every call ends on both within seconds, and the next one is not disturbed; the group's time-out is 30 minutes."""
    outputs = start_both("tests.pipelines.failing_call", tmp_path, *WRONG, timeout=240)
    for kind, words in WRONG.items():
        for rank, expected in enumerate(words):
            file = tmp_path / f"{kind}-{rank}.txt"
            assert file.exists() == (expected is not None), (kind, rank, outputs)
            if expected is not None:
                seconds, told = file.read_text().split(" ", 1)
                assert re.search(expected, told), (kind, rank, told)
                assert float(seconds) < 30


@pytest.fixture
def two_processes(monkeypatch):
    class State:
        num_processes, process_index = 2, 1

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(particle_share, "shared_store", torch.distributed.HashStore)


def test_a_single_generator_is_refused(two_processes):
    for wrong in (torch.Generator(), None, generators()[:4]):
        with pytest.raises(ValueError, match="a list of (8 generators|one for each of the 2 x 4)"):
            call(generator=wrong)


def test_an_uneven_share_is_refused(two_processes):
    with pytest.raises(ValueError, match="3 particles cannot be shared by 2 processes"):
        call(num_particles=3, generator=generators()[:6])


def test_a_funnel_is_refused(two_processes):
    with pytest.raises(ValueError, match="final_particles does not go with spread=True"):
        call(final_particles=2)


@pytest.mark.parametrize(("search", "refused"), [("pruning", True), ("beam", True), ("best-of-n", False)])
def test_other_searches_in_several_processes(search, refused):
    link, population = SimpleNamespace(num_processes=2, process=1), load_search(search, num_particles=12).population(2)
    if refused:
        with pytest.raises(ValueError, match="any other search that changes the number of particles"):
            find_exchange(population, link=link, reward=BrightnessReward())
    else:
        assert find_exchange(population, link=link, reward=BrightnessReward()).num_own == 6


def test_a_reward_that_compares_is_refused(two_processes, monkeypatch):
    monkeypatch.setattr(BrightnessReward, "compares_images", True)
    with pytest.raises(ValueError, match="compares the images of a prompt"):
        call()


def test_latents_are_shared_out():
    exchange = ParticleExchange(num_groups=1, num_particles=4, num_processes=2, process=1)
    own = particle_share.own_arguments({"generator": [0, 1, 2, 3], "latents": torch.arange(4)}, exchange)
    assert own["generator"] == [2, 3]
    assert own["latents"].tolist() == [2, 3]
