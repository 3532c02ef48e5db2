"""General preferences: the skew-symmetric form, and a cycle that no scalar reward can hold."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.rewards.llava_reward.general_preference import mean_preference, preference_logits


def vectors(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_matrix(size):
    """R with <R a, b> = s(a > b), as an explicit matrix."""
    block = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return torch.block_diag(*[block] * (size // 2))


def assert_is_the_form(logits):
    for size in (2, 4, 6):
        a, b = vectors(5, size), vectors(5, size, seed=1)
        expected = torch.einsum("ij,bj,bi->b", block_matrix(size), a, b) / 0.3
        torch.testing.assert_close(logits(a, b, temperature=0.3), expected)


def test_logits_are_the_skew_symmetric_form():
    assert_is_the_form(preference_logits)
    assert preference_logits(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]]), temperature=1.0).item() == -1.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b, *, temperature: preference_logits(b, a, temperature=temperature),
        lambda a, b, *, temperature: preference_logits(a, b, temperature=1.0) * temperature,
        lambda a, b, *, temperature: preference_logits(a[:, :2], b[:, :2], temperature=temperature),
        lambda a, b, *, temperature: (a * b).sum(-1) / temperature,
    ],
)
def test_wrong_forms_are_noticed(wrong):
    with pytest.raises(AssertionError):
        assert_is_the_form(wrong)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([2, 4, 8]))
def test_swapping_turns_the_sign_exactly(seed, size):
    a, b = vectors(4, size, seed), vectors(4, size, seed + 1)
    assert torch.equal(preference_logits(a, b, temperature=0.1), -preference_logits(b, a, temperature=0.1))
    assert torch.equal(preference_logits(a, a, temperature=0.1), torch.zeros(4, dtype=torch.float64))


def cycle():
    """Three vectors on a circle, each preferred to the one before it."""
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def assert_cyclic(logits):
    rock, paper, scissors = cycle().split(1)
    for better, worse in ((rock, paper), (paper, scissors), (scissors, rock)):
        assert logits(better, worse).item() > 1


def test_a_cycle_is_held():
    assert_cyclic(lambda a, b: preference_logits(a, b, temperature=0.1))


@pytest.mark.parametrize("direction", range(8))
def test_no_scalar_reward_holds_the_cycle(direction):
    angle = torch.tensor(direction * math.pi / 4)
    weights = torch.stack([angle.cos(), angle.sin()])
    with pytest.raises(AssertionError):
        assert_cyclic(lambda a, b: (a @ weights - b @ weights) / 0.1)


def test_mean_preference_by_loops():
    rows, prompts = vectors(6, 4), ["a", "b", "a", "c", "a", "b"]
    expected = []
    for i, prompt in enumerate(prompts):
        others = [j for j in range(6) if j != i and prompts[j] == prompt]
        logits = [preference_logits(rows[[i]], rows[[j]], temperature=0.2).item() for j in others]
        expected.append(sum(logits) / len(logits) if logits else 0.0)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(mean_preference(rows, prompts, temperature=0.2), expected)
    assert expected[3] == 0


def test_mean_preference_of_one_prompt_adds_up_to_zero():
    rewards = mean_preference(vectors(7, 2), ["a"] * 7, temperature=0.1)
    assert rewards.abs().max() > 1
    assert rewards.sum().abs() < 1e-10


def test_other_prompts_and_the_order_do_not_matter():
    rows, prompts = vectors(5, 2), ["a", "b", "a", "b", "a"]
    rewards = mean_preference(rows, prompts, temperature=0.1)
    alone = mean_preference(rows[[0, 2, 4]], ["a"] * 3, temperature=0.1)
    torch.testing.assert_close(rewards[[0, 2, 4]], alone)
    for order in itertools.islice(itertools.permutations(range(5)), 0, None, 17):
        order = list(order)
        torch.testing.assert_close(
            mean_preference(rows[order], [prompts[i] for i in order], temperature=0.1), rewards[order]
        )


def test_a_broken_vector_stays_within_its_prompt():
    rows = vectors(4, 2)
    rows[0] = torch.nan
    rewards = mean_preference(rows, ["a", "a", "b", "b"], temperature=0.1)
    assert rewards[:2].isnan().all() and rewards[2:].isfinite().all()


def test_gradients_reach_the_vectors():
    rows = vectors(3, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: mean_preference(v, ["a", "a", "b"], temperature=0.5), (rows,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preference_logits(vectors(2, 3), vectors(2, 3), temperature=0.1), "even d"),
        (lambda: preference_logits(vectors(2, 2), vectors(2, 4), temperature=0.1), "same shape"),
        (lambda: preference_logits(vectors(2, 2), vectors(2, 2), temperature=0.0), "must be positive"),
        (lambda: preference_logits(vectors(2, 2), vectors(2, 2), temperature=math.nan), "must be positive"),
        (lambda: mean_preference(vectors(2, 1), ["a", "a"], temperature=0.1), "even d"),
        (lambda: mean_preference(vectors(2, 2)[0], ["a", "a"], temperature=0.1), "even d"),
        (lambda: mean_preference(vectors(2, 2), ["a"], temperature=0.1), "1 prompts for 2 vectors"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
