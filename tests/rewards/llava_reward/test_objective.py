"""The losses against values computed by hand, finite differences, independent formulas and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import log_expit

from fk_reward.training import binary_loss, bradley_terry_loss, general_preference_loss


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scipy_bradley_terry(chosen, rejected, temperature, margin=0.0):
    """The same in numpy, with scipy's stable log of the logistic function."""
    return -log_expit((chosen.numpy() - rejected.numpy() - margin) / temperature).mean()


def matrix_general_preference(chosen, rejected, temperature):
    """<R chosen, rejected> with the skew-symmetric matrix of 2 x 2 blocks written out."""
    block = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=chosen.dtype)
    matrix = torch.block_diag(*[block] * (chosen.shape[1] // 2))
    logits = torch.einsum("ij,bj,bi->b", matrix, chosen, rejected) / temperature
    return -log_expit(logits.numpy()).mean()


def check_bradley_terry(loss_fn):
    chosen, rejected = torch.tensor([0.3, 0.0]), torch.tensor([0.1, 0.1])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert loss_fn(chosen, rejected, temperature=0.1).item() == pytest.approx(by_hand, rel=1e-6)
    # a margin of 0.1 takes one unit of 0.1 from each difference
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    margin = torch.tensor([0.1, 0.1])
    assert loss_fn(chosen, rejected, temperature=0.1, margin=margin).item() == pytest.approx(by_hand, rel=1e-6)


def test_bradley_terry_by_hand():
    check_bradley_terry(bradley_terry_loss)


def swapped(chosen, rejected, **options):
    return bradley_terry_loss(rejected, chosen, **options)


def without_temperature(chosen, rejected, *, temperature, margin=None):
    return bradley_terry_loss(chosen, rejected, temperature=1.0, margin=margin)


def margin_after_the_division(chosen, rejected, *, temperature, margin=None):
    return bradley_terry_loss(
        chosen, rejected, temperature=temperature, margin=None if margin is None else margin * temperature
    )


def margin_added(chosen, rejected, *, temperature, margin=None):
    return bradley_terry_loss(chosen, rejected, temperature=temperature, margin=None if margin is None else -margin)


@pytest.mark.parametrize("saboteur", [swapped, without_temperature, margin_after_the_division, margin_added])
def test_wrong_bradley_terry_is_noticed(saboteur):
    with pytest.raises(AssertionError):
        check_bradley_terry(saboteur)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 2.0])
def test_agreement_with_scipy(temperature):
    chosen, rejected, margin = rows(7), rows(7, seed=1), rows(7, seed=2).abs()
    loss = bradley_terry_loss(chosen, rejected, temperature=temperature, margin=margin)
    assert loss.item() == pytest.approx(scipy_bradley_terry(chosen, rejected, temperature, margin.numpy()), rel=1e-12)


def test_binary_by_hand():
    logits, labels = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([1, 0, 0])
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1)) + math.log(1 + math.exp(-2))) / 3
    for kind in (torch.bool, torch.long, torch.float32):
        assert binary_loss(logits, labels.to(kind)).item() == pytest.approx(by_hand, rel=1e-6)
    assert binary_loss(-logits, labels).item() != pytest.approx(by_hand, rel=1e-2)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_general_preference_is_the_skew_symmetric_form(size):
    chosen, rejected = rows(5, size), rows(5, size, seed=1)
    loss = general_preference_loss(chosen, rejected, temperature=0.3)
    assert loss.item() == pytest.approx(matrix_general_preference(chosen, rejected, 0.3), rel=1e-12)
    turned = general_preference_loss(rejected, chosen, temperature=0.3)
    assert turned.item() != pytest.approx(loss.item(), rel=1e-3)


def test_gradients_against_finite_differences():
    pair = [rows(4, seed=seed).requires_grad_() for seed in (0, 1)]
    margin = rows(4, seed=2).abs()
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry_loss(c, r, temperature=0.5, margin=margin), pair)
    assert torch.autograd.gradcheck(lambda x: binary_loss(x, torch.tensor([1, 0, 0, 1])), pair[:1])
    vectors = [rows(3, 4, seed=seed).requires_grad_() for seed in (3, 4)]
    assert torch.autograd.gradcheck(lambda c, r: general_preference_loss(c, r, temperature=0.5), vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_overflow(dtype):
    high = torch.tensor([1e4], dtype=dtype, requires_grad=True)
    low = torch.tensor([-1e4], dtype=dtype)
    assert bradley_terry_loss(high, low).item() == 0.0
    wrong = bradley_terry_loss(low, high)
    assert wrong.item() == pytest.approx(2e5, rel=5e-3)
    wrong.backward()
    assert high.grad.item() == pytest.approx(10.0, rel=1e-2)
    assert binary_loss(low, torch.tensor([1])).item() == pytest.approx(1e4, rel=5e-3)
    vectors = torch.tensor([[1e2, 0.0]], dtype=dtype), torch.tensor([[0.0, 1e2]], dtype=dtype)
    assert general_preference_loss(*vectors).item() == 0.0
    assert general_preference_loss(*vectors[::-1]).item() == pytest.approx(1e5, rel=5e-3)


def test_half_precision_is_computed_in_float32():
    chosen, rejected = torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor([0.25], dtype=torch.bfloat16)
    loss = bradley_terry_loss(chosen, rejected)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, bradley_terry_loss(chosen.float(), rejected.float()), rtol=0, atol=0)


def test_a_tie_is_log_2():
    zeros = torch.zeros(3)
    assert bradley_terry_loss(zeros, zeros).item() == pytest.approx(math.log(2))
    assert binary_loss(zeros, zeros).item() == pytest.approx(math.log(2))
    vectors = rows(3, 2)
    assert general_preference_loss(vectors, vectors).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bradley_terry_loss(torch.zeros(2), torch.zeros(3)), "one shape"),
        (lambda: bradley_terry_loss(torch.zeros(2, 1), torch.zeros(2, 1)), "one shape"),
        (lambda: bradley_terry_loss(torch.zeros(2), torch.zeros(2), margin=torch.zeros(1)), "one shape"),
        (lambda: bradley_terry_loss(torch.zeros(0), torch.zeros(0)), "at least 1"),
        (lambda: bradley_terry_loss(torch.zeros(2), torch.zeros(2), temperature=0.0), "temperature"),
        (lambda: binary_loss(torch.zeros(2), torch.tensor([0.0, 0.5])), "0 or 1"),
        (lambda: binary_loss(torch.zeros(2), torch.zeros(2, 1)), "one shape"),
        (lambda: general_preference_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "even d"),
        (lambda: general_preference_loss(torch.zeros(0, 2), torch.zeros(0, 2)), "empty"),
        (lambda: general_preference_loss(torch.zeros(2, 2), torch.zeros(2, 2), temperature=-1.0), "temperature"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
