"""The script that says how early a reward knows, on made-up images whose brightness is their score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fk_reward.rewards import CallableReward


@pytest.fixture
def script(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "examples" / "shapes")
    import check_predictions

    return check_predictions


BRIGHTNESS = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "brightness")


@pytest.fixture
def samples(tmp_path):
    """Six draws of four images: at step 10 noise, later the final image; the two brightest are right.

    The draws lie 40 grey levels apart, so that whoever does not compare within draws finds far more agreement.
    """
    rng = np.random.default_rng(0)
    final = np.stack([40 * draw + rng.permutation(4) * 10 for draw in range(6)]).reshape(24)
    noise = np.stack([40 * draw + rng.permutation(4) * 10 for draw in range(6)]).reshape(24)
    levels = torch.from_numpy(np.stack([noise, *[final] * 8], axis=1)).byte()
    path = tmp_path / "heldout.safetensors"
    tensors = {
        "images": levels[..., None, None, None].expand(24, 9, 3, 2, 2).contiguous(),
        "prompts": torch.arange(6).repeat_interleave(4),
        "correct": torch.from_numpy(final % 40 >= 20),
    }
    save_file(tensors, path)
    return path, noise.reshape(6, 4), final.reshape(6, 4)


def rows(script, path, *, order=slice(None)):
    draws = script.read_draws([path], 4)
    draws["correct"] = draws["correct"][order]
    scores = script.score_draws(BRIGHTNESS, draws)
    return script.rows_by_step(scores, draws, [str(step) for step in range(9)], seed=0)


def check(found, noise, final):
    """Against numpy on what was put in."""
    a, b = ((table - table.mean(axis=1, keepdims=True)).ravel() for table in (noise, final))
    right = (final % 40 >= 20).ravel()
    assert found[0]["with_own"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert found[0]["with_verifier"] == pytest.approx(np.corrcoef(a, right)[0, 1], abs=1e-6)
    assert found[-1]["with_own"] == pytest.approx(1.0)
    assert found[-1]["with_verifier"] == pytest.approx(np.corrcoef(b, right)[0, 1], abs=1e-6)
    assert (found[-1]["pairwise"], found[-1]["low"], found[-1]["high"]) == (1.0, 1.0, 1.0)
    assert found[0]["pairwise"] < 1.0


def test_figures_are_those_of_numpy(script, samples):
    path, noise, final = samples
    check(rows(script, path), noise, final)


def test_verdicts_of_other_draws_are_noticed(script, samples):
    path, noise, final = samples
    with pytest.raises(AssertionError):
        check(rows(script, path, order=[1, 2, 3, 4, 5, 0]), noise, final)


def test_pairs_by_hand(script):
    scores, correct = torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False])
    assert script.foreseen(scores, correct) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert script.foreseen(-scores, correct) == pytest.approx(0.5 / 4)
    assert math.isnan(script.within_prompt_correlation(torch.ones(2, 3), torch.rand(2, 3)))


def test_another_number_of_images_a_draw_is_refused(script, samples):
    with pytest.raises(ValueError, match="per-prompt"):
        script.read_draws([samples[0]], 8)


def test_main(script, samples, monkeypatch, capsys):
    monkeypatch.setattr(script, "load_reward", lambda name: BRIGHTNESS)
    script.check_early_rewards("brightness", [samples[0]], num_draws=5, per_prompt=4)
    printed = capsys.readouterr().out
    assert "brightness: 5 draws of 4 images, 5 with right and wrong ones; seed 0" in printed
    assert "step 10" in printed
    assert "finished" in printed
