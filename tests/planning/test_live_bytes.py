"""CallCosts bytes against arithmetic and against PyTorch's own tracker."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fk_reward.planning.meta_device import LiveBytes


@pytest.fixture(params=["cpu", "meta"])
def device(request):
    return request.param


def test_what_is_freed_is_taken_off(device):
    with LiveBytes() as tracker:
        kept = torch.zeros(1024, device=device)
        for _ in range(3):
            kept = kept + 1
    assert (tracker.live, tracker.peak) == (4096, 8192)


def test_a_view_is_not_counted_again(device):
    with LiveBytes() as tracker:
        x = torch.zeros(2, 512, device=device)
        views = [x[0], x.view(-1), x.T, x.detach()]
    assert tracker.live == 4096
    del x
    assert tracker.live == 4096
    views.clear()
    assert tracker.live == 0


def test_blocks_are_whole(device):
    with LiveBytes() as tracker:
        x = torch.zeros(129, device=device)
    assert tracker.live == 1024
    del x


def test_tensors_from_before_do_not_count(device):
    before = torch.zeros(1024, device=device)
    with LiveBytes() as tracker:
        view = before[:5]
        before.add_(1)
    assert tracker.peak == 0
    del view


def test_held_tensors_are_taken_off_when_they_are_replaced(device):
    layer = nn.Linear(512, 512, bias=False, dtype=torch.float16, device=device)
    with LiveBytes(layer.parameters()) as tracker:
        layer.to(torch.float32)
        wide = tracker.live
        layer.to(torch.float16)
    assert (wide, tracker.live) == (2 * 512 * 512, 0)
    assert tracker.peak == 4 * 512 * 512


def test_the_peak_can_be_forgotten(device):
    with LiveBytes() as tracker:
        x = torch.zeros(4096, device=device)
        del x
        tracker.restart()
        y = torch.zeros(1024, device=device)
    assert tracker.peak == 4096
    del y


def test_peak_is_that_of_pytorchs_tracker():
    mem_tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")
    model = nn.Sequential(nn.Linear(64, 1024), nn.GELU(), nn.Linear(1024, 256), nn.LayerNorm(256))
    images = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        oracle = mem_tracker.MemTracker()
        oracle.track_external(model, images)
        with oracle:
            model(images)
        expected = oracle.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
        with LiveBytes() as tracker:
            model(images)
    external = sum(-(-tensor.nbytes // 512) * 512 for tensor in (*model.parameters(), images))
    assert tracker.peak == expected - external
