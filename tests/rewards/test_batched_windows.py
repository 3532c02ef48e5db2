"""Attention in batches of windows against transformers' own, one call a window."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from fk_reward.rewards import batched_windows
from fk_reward.rewards.batched_windows import batch_windows

GRIDS = torch.tensor([[1, 18, 26], [1, 8, 8], [1, 18, 26], [1, 30, 4]])  # whole windows, and parts of them


def tower(implementation="sdpa"):
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(vision_config=vision | {"window_size": 112, "fullatt_block_indexes": [1]}).vision_config
    config._attn_implementation = implementation
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return theirs.Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def qwen2_tower(implementation="sdpa"):
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision).vision_config
    config._attn_implementation = implementation
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2VisionTransformerPretrainedModel(config).eval()


def qwen3_tower(implementation="sdpa"):
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    config = Qwen3VLConfig(vision_config=vision).vision_config
    config._attn_implementation = implementation
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3VLVisionModel(config).eval()


def patches():
    return torch.randn(int(GRIDS.prod(dim=1).sum()), 1176, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(model):
    found = model(patches(), grid_thw=GRIDS)
    return torch.stack([found.pooler_output, *getattr(found, "deepstack_features", ())])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tower, qwen2_tower, qwen3_tower])
def test_the_tower_gives_the_same(make, implementation):
    model = make(implementation)
    expected = outputs(model)
    batch_windows(model)
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-6)


def counted_calls(model, monkeypatch):
    calls, attend = [], theirs.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(module, query, *args, **kwargs):
        calls.append(tuple(query.shape))
        return attend(module, query, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setitem(theirs.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
        outputs(model)
    return calls


def test_windows_of_a_length_are_one_call(monkeypatch):
    model = tower()
    alone = counted_calls(model, monkeypatch)
    batch_windows(model)
    together = counted_calls(model, monkeypatch)
    assert len(together) < len(alone) / 4
    assert sum(shape[0] * shape[2] for shape in together) == sum(shape[0] * shape[2] for shape in alone)


@pytest.mark.parametrize("make", [qwen2_tower, qwen3_tower])
def test_images_of_a_size_are_one_call(make, monkeypatch):
    model = make()
    assert len(counted_calls(model, monkeypatch)) == 3 * len(GRIDS)
    batch_windows(model)
    assert len(counted_calls(model, monkeypatch)) == 3 * 3, "a call for each of three sizes, in three layers"


def test_mixed_up_windows_are_noticed(monkeypatch):
    model = tower()
    expected = outputs(model)
    batch_windows(model)
    groups = batched_windows._groups
    monkeypatch.setattr(
        batched_windows, "_groups", lambda *a, **k: (rows.t().reshape(rows.shape) for rows in groups(*a, **k))
    )
    assert (outputs(model) - expected).abs().max() > 1e-3


def test_gradients_pass():
    model = tower()
    batch_windows(model)
    pixels = patches().requires_grad_()
    model(pixels, grid_thw=GRIDS).pooler_output[:9].square().sum().backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad[0].abs().max() > 0


def test_places_are_found_once_a_pass(monkeypatch):
    model = qwen2_tower()
    batch_windows(model)
    found, groups = [], batched_windows._groups
    monkeypatch.setattr(batched_windows, "_groups", lambda *a, **k: found.append(1) or groups(*a, **k))
    outputs(model)
    assert len(found) == 1, "for three layers"
    gc.collect()
    assert not len(batched_windows._GROUPS), "nothing is kept behind the pass"


def test_eager_attention_is_split_where_it_would_take_much_memory(monkeypatch):
    cu_seqlens = torch.tensor([0, 4, 8, 12, 15])
    assert [tuple(rows.shape) for rows in batched_windows._groups(cu_seqlens, eager=True)] == [(1, 3), (3, 4)]
    monkeypatch.setattr(batched_windows, "_EAGER_SCORES", 32)
    assert [tuple(rows.shape) for rows in batched_windows._groups(cu_seqlens, eager=True)] == [(1, 3), (2, 4), (1, 4)]
