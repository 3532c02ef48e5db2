"""Bytes and operations without numbers: against arithmetic, PyTorch's own counters, and passes with numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fk_reward.planning import meta_device
from fk_reward.planning.meta_device import FusedAttention, LiveBytes, Operations, count_flops, flop_counter
from fk_reward.rewards import Reward, RewardCard, load_reward

PROMPT = "a photo of a red circle and a blue square"


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


def test_fused_attention_has_the_numbers_and_bytes_of_pytorch():
    x = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    with FusedAttention():
        real = functional.scaled_dot_product_attention(x, x, x)
        on_meta = functional.scaled_dot_product_attention(*(x.to("meta"),) * 3)
    assert torch.equal(real, functional.scaled_dot_product_attention(x, x, x))
    assert on_meta.shape == real.shape


@pytest.mark.parametrize("mask", [None, torch.ones(16, 16).tril().bool(), torch.zeros(16, 16)])
def test_fused_attention_takes_masks(mask):
    x = torch.empty(2, 3, 16, 8, device="meta")
    mask = mask if mask is None else mask.to("meta")
    with FusedAttention():
        assert functional.scaled_dot_product_attention(x, x, x, attn_mask=mask).shape == x.shape


def test_shapes_that_no_fused_kernel_takes_are_left_to_pytorch():
    query, value = torch.empty(2, 3, 16, 8, device="meta"), torch.empty(2, 3, 16, 4, device="meta")
    with FusedAttention():
        assert functional.scaled_dot_product_attention(query, query, value).shape == value.shape


class Masked(Reward):
    """Asks for the numbers of masks and places, as code for tokens does; its weights have none."""

    card = RewardCard(name="masked", summary="a layer on some rows")

    def __init__(self):
        self.layer = nn.Linear(4, 5, bias=False)

    def score(self, images, prompts):
        rows = images.flatten(1).reshape(-1, 4)
        mask = torch.arange(len(rows), device=images.device) % 3 == 0
        if not mask.any():
            raise AssertionError("numbers were lost")
        return self.layer(rows[mask]).sum().expand(len(images))


def test_what_does_not_depend_on_weights_keeps_its_numbers():
    picked = len(range(0, 3 * 8 * 8 // 4, 3))
    assert count_flops(Masked(), 8, "a") == 2 * picked * 4 * 5


def test_weights_are_put_back():
    reward = load_reward("shapes-clipscore")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = reward(image, PROMPT)
    weights = list(reward.model.parameters())
    count_flops(reward, 64, PROMPT)
    assert all(now is then for now, then in zip(reward.model.parameters(), weights, strict=True))
    assert torch.equal(reward(image, PROMPT), before)


def test_numbers_that_depend_on_weights_are_refused():
    class Branching(Masked):
        def score(self, images, prompts):
            return images.sum(dim=(1, 2, 3)) if self.layer.weight.sum() > 0 else images.mean(dim=(1, 2, 3))

    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        count_flops(Branching(), 8, "a")


def test_counts_on_the_meta_device_are_those_of_a_real_pass():
    reward = load_reward("shapes-clipscore")
    reward.model.set_attn_implementation("eager")  # of the fast ones on a CPU the counter knows nothing
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reward.score(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), [PROMPT])
    assert counter.get_total_flops() == count_flops(reward, 64, PROMPT)


def on_meta(*size, dtype=torch.float32):
    return torch.empty(size, dtype=dtype, device="meta")


OPERATIONS = {
    "broadcast": lambda: on_meta(2, 1, 3) + on_meta(4, 1),
    "of whole numbers": lambda: on_meta(3, dtype=torch.int64) * 2,
    "of whole numbers and a fraction": lambda: on_meta(3, dtype=torch.int64) * 2.0,
    "widened": lambda: on_meta(3, dtype=torch.float16) + on_meta(3),
    "transposed": lambda: on_meta(3, 4).T + 1,
    "not transposed": lambda: on_meta(4, 3) + 1,
    "short": lambda: on_meta(4) + 1,
    "long": lambda: on_meta(5) + 1,
    "of halves": lambda: on_meta(5, dtype=torch.float16) + 1,
    "exponential": lambda: on_meta(5).exp(),
    "question": lambda: on_meta(5).isnan(),
    "joined": lambda: torch.cat([on_meta(2, 3), on_meta(1, 3)]),
    "joined elsewhere": lambda: torch.cat([on_meta(2, 3), on_meta(2, 3)], dim=1),
    "several": lambda: torch.ops.aten.native_layer_norm(on_meta(2, 3), [3], None, None, 1e-5),
    "sorted": lambda: torch.sort(on_meta(2, 3)),
    "product": lambda: on_meta(2, 3) @ on_meta(3, 4),
    "of channels last": lambda: functional.conv2d(
        on_meta(1, 3, 8, 8).to(memory_format=torch.channels_last), on_meta(5, 3, 3, 3)
    ),
    "of channels first": lambda: functional.conv2d(on_meta(1, 3, 8, 8), on_meta(5, 3, 3, 3)),
    "attention": lambda: functional.scaled_dot_product_attention(*(on_meta(1, 2, 5, 8),) * 3),
}


def described(result):
    tensors = [result] if isinstance(result, torch.Tensor) else result
    return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.untyped_storage().nbytes()) for tensor in tensors]


def of_all():
    """What all operations return, one after the other, and their floating-point operations."""
    with Operations() as operations, FusedAttention():
        return {name: described(make()) for name, make in OPERATIONS.items()}, operations.total


@pytest.fixture
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(meta_device, "_OUTCOMES", {})


@pytest.fixture
def plain():
    with flop_counter() as counter, FusedAttention():
        return {name: described(make()) for name, make in OPERATIONS.items()}, counter.get_total_flops()


def test_what_is_remembered_is_what_pytorch_returns(plain, nothing_remembered):
    assert of_all() == plain
    known = dict(meta_device._OUTCOMES)
    assert len(known) >= len(OPERATIONS)
    assert of_all() == plain
    assert meta_device._OUTCOMES == known


FORGETFUL = {
    "sizes": lambda part: part._replace(size=None) if isinstance(part, meta_device._Shape) else part,
    "strides": lambda part: part._replace(stride=None) if isinstance(part, meta_device._Shape) else part,
    "dtypes": lambda part: part._replace(dtype=None) if isinstance(part, meta_device._Shape) else part,
    "types of numbers": lambda part: None if isinstance(part, type) else part,
    "which operation": lambda part: None if isinstance(part, torch._ops.OpOverload) else part,
}


@pytest.mark.parametrize("what", FORGETFUL)
def test_a_memory_that_forgets_what_decides_a_result_is_noticed(what, plain, nothing_remembered, monkeypatch):
    signature = meta_device._signature

    def forget(part):
        part = FORGETFUL[what](part)
        return tuple(map(forget, part)) if type(part) is tuple else part

    monkeypatch.setattr(meta_device, "_signature", lambda *call: forget(signature(*call)))
    with pytest.raises(AssertionError):
        assert of_all() == plain


def test_what_is_written_or_viewed_is_not_made_anew(nothing_remembered):
    x = on_meta(4, 3)
    with Operations():
        for _ in range(2):
            same = [x.view(3, 4), x.T, x.add_(1), torch.ops.aten._unsafe_view(x, [12]), x.split(2)[0]]
            assert all(y.untyped_storage() is x.untyped_storage() for y in same)
    assert not any("view" in str(key[0]) for key in meta_device._OUTCOMES)


def test_numbers_are_not_remembered(nothing_remembered):
    with Operations() as operations:
        products = [torch.full((2, 3), float(n)) @ torch.ones(3, 4) for n in range(3)]
    assert [product[0, 0] for product in products] == [0, 3, 6]
    assert operations.total == 3 * 2 * (2 * 3 * 4)
    assert meta_device._OUTCOMES == {}


def test_the_memory_has_an_end(nothing_remembered, monkeypatch):
    monkeypatch.setattr(meta_device, "_MOST_OUTCOMES", 3)
    with Operations():
        for size in range(1, 9):
            assert (on_meta(size) + 1).shape == (size,)
    assert 0 < len(meta_device._OUTCOMES) <= 3
