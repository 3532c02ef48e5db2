"""Costs without numbers against the same code with numbers."""

from __future__ import annotations

import contextlib

import pytest
import torch

from fk_reward.planning import costs
from fk_reward.planning.costs import ImageRequest, batch_costs
from fk_reward.planning.memory import MemoryModel, Settings
from fk_reward.planning.meta_device import BLOCK_BYTES


def measured(models, family, *, on_meta, batch_size=2, preview=None):
    with models(family, on_meta=on_meta, preview=preview) as made:
        return batch_costs(made, ImageRequest(), batch_size=batch_size)


def assert_twins(on_meta, real):
    """The same bytes and operations; of what is kept a number beside the real one may differ, in a block of its own."""
    assert on_meta.activations.keys() == real.activations.keys()
    for phase in on_meta.activations.keys() - {"text"}:
        assert on_meta.activations[phase] == real.activations[phase]
    assert on_meta.activations["text"] == pytest.approx(real.activations["text"], abs=4 * BLOCK_BYTES)
    assert on_meta.kept == pytest.approx(real.kept, abs=4 * BLOCK_BYTES)
    assert on_meta.flops == real.flops
    assert (on_meta.image_bytes, on_meta.preview_bytes) == (real.image_bytes, real.preview_bytes)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_without_numbers_the_bytes_are_those_of_a_real_run(models, family):
    assert_twins(measured(models, family, on_meta=True), measured(models, family, on_meta=False))


@pytest.mark.parametrize(("family", "preview"), [("sd", "tiny"), ("sd", "reduced"), ("sdxl", "tiny")])
def test_a_preview_without_numbers_has_the_bytes_of_a_real_one(models, family, preview):
    on_meta, real = (measured(models, family, on_meta=h, preview=preview) for h in (True, False))
    assert_twins(on_meta, real)
    assert on_meta.flops["preview"] < on_meta.flops["decode"]
    if preview == "reduced":
        assert on_meta.preview_bytes * 4 == on_meta.image_bytes
        assert on_meta.activations["preview"] < on_meta.activations["decode"] / 2


def test_the_other_preview_is_noticed(models):
    on_meta = measured(models, "sd", on_meta=True, preview="tiny")
    with pytest.raises(AssertionError):
        assert_twins(on_meta, measured(models, "sd", on_meta=False, preview="reduced"))


def test_attention_that_writes_out_its_matrix_is_noticed(models, monkeypatch):
    real = measured(models, "sd", on_meta=False)
    monkeypatch.setattr(costs, "FusedAttention", contextlib.nullcontext)
    with pytest.raises(AssertionError):
        assert_twins(measured(models, "sd", on_meta=True), real)


def test_between_one_image_and_all_the_chord_is_never_below(models):
    one, two, all_of_them = (measured(models, "sd", on_meta=True, batch_size=n) for n in (1, 2, 4))
    chord = MemoryModel(4, dict.fromkeys(("text", "denoiser", "decoder", "other", "reward"), 0), one, all_of_them)
    for phase in ("denoise", "decode", "reward"):
        on_the_chord = chord.need(phase, Settings(2, 2, 2)).activations
        assert two.activations[phase] <= on_the_chord <= 1.1 * two.activations[phase]


def test_a_larger_image_and_guidance_cost_more(models):
    with models("sd", on_meta=True) as made:
        small = batch_costs(made, ImageRequest(), batch_size=1)
        large = batch_costs(made, ImageRequest(height=128, width=64), batch_size=1)
        unguided = batch_costs(made, ImageRequest(guidance_scale=1.0), batch_size=1)
    assert large.image_bytes == 2 * small.image_bytes
    assert 1.9 < large.activations["decode"] / small.activations["decode"] < 2.1
    assert unguided.flops["denoise"] * 2 == small.flops["denoise"]


def blocks(numbers, size):
    return sum(-(-tensor.numel() * size // BLOCK_BYTES) * BLOCK_BYTES for tensor in numbers)


def test_an_autoencoder_that_is_widened_takes_the_difference_of_its_weights(models):
    with models("sdxl", on_meta=True) as made:
        plain = batch_costs(made, ImageRequest(), batch_size=1)
        made.pipe.vae.to(torch.float16)
        widened = batch_costs(made, ImageRequest(), batch_size=1)
        weights = list(made.pipe.vae.parameters())
    added = widened.activations["decode"] - plain.activations["decode"]
    assert added == pytest.approx(blocks(weights, 4) - blocks(weights, 2), abs=4 * BLOCK_BYTES)
