"""Merged updates: the formula, PEFT's own merge, and PEFT's other merge as the saboteur."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fk_reward.training.skills.low_rank import LowRank, lost_share, merge_updates, nearest

WEIGHTS = [0.5, -0.3, 1.7]
RANKS, ALPHAS = (2, 3, 5), (4, 1, 7)


def update(rank, *, alpha=None, seed=0, inputs=6, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    return LowRank(a, b, scale=(rank if alpha is None else alpha) / rank)


def experts():
    return [
        {name: update(rank, alpha=alpha, seed=10 * i + j) for j, name in enumerate(("q", "k"))}
        for i, (rank, alpha) in enumerate(zip(RANKS, ALPHAS, strict=True))
    ]


def formula(name, members, weights=WEIGHTS):
    """sum_i w_i (alpha_i / r_i) B_i A_i in double precision, written out."""
    return sum(
        weight * alpha / rank * expert[name].b.double() @ expert[name].a.double()
        for weight, alpha, rank, expert in zip(weights, ALPHAS, RANKS, members, strict=True)
    )


def test_the_merged_update_is_the_weighted_sum():
    members = experts()
    merged = merge_updates(members, WEIGHTS)
    assert set(merged) == {"q", "k"}
    for name, layer in merged.items():
        assert (layer.rank, layer.scale) == (sum(RANKS), 1.0)
        torch.testing.assert_close(layer.delta().double(), formula(name, members), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "agrees"), [("cat", True), ("linear", False)])
def test_pefts_cat_agrees_and_its_linear_does_not(kind, agrees):
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 4, bias=False)), LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
    )
    names = ["default", "second"]
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=3, target_modules=["0"]))
    layer = model.base_model.model[0]
    for name in names:
        nn.init.normal_(layer.lora_B[name].weight)
    members = [
        {"0": LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, scale=layer.scaling[name])}
        for name in names
    ]
    model.add_weighted_adapter(names, [0.5, 0.7], "merged", combination_type=kind)
    theirs = layer.get_delta_weight("merged")
    ours = merge_updates(members, [0.5, 0.7])["0"].delta()
    assert torch.allclose(ours, theirs, atol=1e-6) == agrees


def test_a_layer_that_an_adapter_lacks_adds_nothing():
    members = experts()
    alone = members[2].pop("k")
    merged = merge_updates([{"q": members[0]["q"]}, {"q": members[1]["q"], "k": alone}], [1.0, 2.0])
    torch.testing.assert_close(merged["k"].delta(), 2 * alone.delta())
    assert merged["k"].rank == merged["q"].rank == 5


def test_convolutions():
    generator = torch.Generator().manual_seed(0)
    members = [
        {
            "conv": LowRank(
                torch.randn(r, 3, 3, 3, generator=generator), torch.randn(5, r, 1, 1, generator=generator), 0.5
            )
        }
        for r in (1, 2)
    ]
    expected = sum(w * m["conv"].delta() for w, m in zip((2.0, 3.0), members, strict=True))
    for rank in (None, 3, 7):
        found = merge_updates(members, [2.0, 3.0], rank=rank)["conv"]
        torch.testing.assert_close(found.delta(), expected)
        assert found.delta().shape == (5, 3, 3, 3)


def test_a_smaller_rank_is_the_best_one():
    members = experts()
    whole = merge_updates(members, WEIGHTS)["q"]
    values = torch.linalg.svdvals(whole.delta().double())
    for rank in (1, 2, 3):
        error = (nearest(whole, rank).delta() - whole.delta()).norm().double()
        torch.testing.assert_close(error, values[rank:].square().sum().sqrt(), rtol=1e-4, atol=1e-5)
    small = merge_updates(members, WEIGHTS, rank=2)
    assert small["q"].rank == 2
    expected = values[2:].square().sum().sqrt() / values.square().sum().sqrt()
    assert lost_share({"q": whole}, small) == pytest.approx(expected.item(), rel=1e-4)


def test_the_dtype_of_the_experts_stays():
    half = LowRank(torch.ones(1, 2).half(), torch.ones(2, 1).half(), scale=2.0)
    assert merge_updates([{"q": half}], [0.5])["q"].a.dtype == torch.float16


@pytest.mark.parametrize(
    ("members", "weights", "message"),
    [
        ([], [], "nothing to merge"),
        ([{}], [1.0], "nothing to merge"),
        ([{"q": update(1)}], [1.0, 2.0], "a weight for each of the 1 adapters, got 2"),
        ([{"q": update(1)}], [float("nan")], "finite"),
        ([{"q": update(1)}, {"q": update(1, inputs=7)}], [1.0, 1.0], "different sizes"),
    ],
)
def test_what_cannot_be_merged(members, weights, message):
    with pytest.raises(ValueError, match=message):
        merge_updates(members, weights)


def test_factors_must_fit():
    with pytest.raises(ValueError, match="not the factors"):
        LowRank(torch.ones(2, 3), torch.ones(4, 3), scale=1.0)
