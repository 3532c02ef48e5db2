"""Noise bands: which judge a level has, calibration against a regression of NumPy, and rewards of any kind."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fk_reward.benchmarks.scaling.runs import ScalingRequest, plan_scaling, scored_by
from fk_reward.planning.prices import PRICES
from fk_reward.rewards import BandedReward, CallableReward, NoiseBand, load_reward, reward_card
from fk_reward.rewards.noise_bands import (
    Calibration,
    find_band,
    fit_calibration,
    prompt_at_level,
    read_band,
    require_disjoint,
    write_band,
)
from fk_reward.rewards.registry import check_reward_name

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def constant(value, name):
    return CallableReward(lambda images, prompts: images.new_full((len(images),), value), name)


@pytest.fixture
def banded():
    bands = {NoiseBand(0.3, 0.6, "0.5"): constant(0.5, "middle"), NoiseBand(0.6, 1.0, "0.8"): constant(0.8, "noisy")}
    return BandedReward(constant(0.0, "plain"), bands)


@pytest.mark.parametrize(
    ("level", "value"), [(0.0, 0.0), (0.29, 0.0), (0.3, 0.5), (0.599, 0.5), (0.6, 0.8), (1.0, 0.8)]
)
def test_a_level_has_the_judge_of_its_band(banded, level, value):
    assert banded.at_noise(level)(IMAGES, "x").tolist() == pytest.approx([value] * 3)


def test_finished_images_have_the_plain_judge_even_where_a_band_begins_at_zero():
    assert find_band([NoiseBand(0.0, 0.5)], 0.0) is None
    assert find_band([NoiseBand(0.0, 0.5)], 1e-9) is not None
    reward = BandedReward(constant(0.0, "plain"), {NoiseBand(0.0, 1.0): constant(1.0, "band")})
    assert reward(IMAGES, "x").tolist() == [0.0] * 3


@pytest.mark.parametrize("band", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_bands_are_refused(band):
    with pytest.raises(ValueError, match="low < high"):
        NoiseBand(*band)


def test_bands_that_overlap_are_refused():
    require_disjoint([NoiseBand(0.5, 0.7), NoiseBand(0.1, 0.5)])
    with pytest.raises(ValueError, match=r"a \[0.1, 0.5\) and b \[0.4, 0.7\) overlap"):
        require_disjoint([NoiseBand(0.4, 0.7, "b"), NoiseBand(0.1, 0.5, "a")])


@pytest.mark.parametrize("level", [-0.01, 1.01, float("nan")])
def test_other_levels_are_refused(banded, level):
    for reward in (banded, constant(0.0, "plain")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            reward.at_noise(level)


def test_a_reward_without_bands_answers_itself():
    plain = constant(1.0, "plain")
    assert plain.at_noise(0.5) is plain and plain.judges == ("plain",) and plain.uncalibrated == ()


def test_compositions_pass_it_on(banded):
    reward = 2 * banded + constant(1.0, "other")
    assert reward.at_noise(0.5)(IMAGES, "x").tolist() == pytest.approx([2.0] * 3)
    assert reward.at_noise(0.5).judges == ("middle", "other")
    assert reward.at_noise(0.1)(IMAGES, "x").tolist() == reward(IMAGES, "x").tolist() == [1.0] * 3
    alone = constant(1.0, "a") + constant(2.0, "b")
    assert alone.at_noise(0.5) is alone


def test_moving_and_limiting_reach_all(banded):
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, images, prompts):
            seen.append(len(images))
            return images.mean(dim=(1, 2, 3))

    reward = BandedReward(constant(0.0, "plain"), {NoiseBand(0.5, 1.0): CallableReward(Watched().double(), "w")})
    reward.to(dtype=torch.float64)
    reward.batch_size = 2
    with reward.limited_to(1):
        reward.at_noise(0.7)(IMAGES, "x")
    reward.at_noise(0.7)(IMAGES, "x")
    assert seen == [1, 1, 1, 2, 1]
    assert len(reward.modules_to_compile()) == 1


def test_rewards_that_compare_images_have_no_bands():
    class Comparing(CallableReward):
        compares_images = True

    comparing = Comparing(lambda images, prompts: images.mean(dim=(1, 2, 3)), "c")
    with pytest.raises(ValueError, match="no common unit"):
        BandedReward(comparing, {NoiseBand(0.5, 1.0): constant(0.0, "x")})


@pytest.mark.parametrize("seeds", [(6, 6), (8, 2)], ids=["as many seeds", "recordings of different numbers of seeds"])
def test_the_calibration_is_the_regression_within_prompts(seeds):
    """Least squares with an intercept for each prompt, by NumPy, gives the slope."""
    rng, prompts = np.random.default_rng(0), np.repeat(np.arange(30), [seeds[place % 2] for place in range(30)])
    scores, offsets = rng.normal(size=len(prompts)), 10 * rng.normal(size=30)[prompts]
    finished = 0.4 * scores + offsets + 0.1 * rng.normal(size=len(prompts))
    design = np.column_stack([scores, prompts[:, None] == np.arange(30)])
    slope = np.linalg.lstsq(design, finished, rcond=None)[0][0]

    def by_prompt(values):
        return [torch.tensor(values[prompts == place]) for place in range(30)]

    found = fit_calibration(by_prompt(scores), by_prompt(finished))
    assert found.scale == pytest.approx(slope, rel=1e-9)
    assert float(found(torch.tensor(scores)).mean()) == pytest.approx(finished.mean())
    # a saboteur: offsets of prompts, which no pair teaches, would decide a pooled regression
    shifted = scores - offsets
    assert fit_calibration(by_prompt(shifted), by_prompt(finished)).scale == pytest.approx(slope, rel=1e-9)
    assert np.polyfit(shifted, finished, 1)[0] < 0


def test_a_band_that_knows_nothing_moves_little_and_one_that_errs_is_refused():
    rng = torch.Generator().manual_seed(0)
    scores, finished = torch.randn(200, 4, generator=rng), torch.randn(200, 4, generator=rng)
    try:
        assert abs(fit_calibration(scores, finished).scale) < 4 / (200 * 3) ** 0.5
    except ValueError as error:
        assert "learnt nothing" in str(error)
    with pytest.raises(ValueError, match="learnt nothing"):
        fit_calibration(-finished, finished)


@pytest.mark.parametrize(
    ("scores", "finished"),
    [
        (torch.ones(3, 1), torch.ones(3, 1)),
        (torch.ones(3, 2), torch.ones(3, 3)),
        (torch.ones(3, 2), torch.rand(3, 2)),
        (torch.tensor([[0.0, torch.nan]]), torch.rand(1, 2)),
        (torch.zeros(0, 2), torch.zeros(0, 2)),
        ([torch.rand(2), torch.rand(1)], [torch.rand(2), torch.rand(1)]),
        ([torch.rand(2), torch.rand(3)], [torch.rand(3), torch.rand(2)]),
    ],
)
def test_what_cannot_be_calibrated_is_refused(scores, finished):
    with pytest.raises(ValueError, match="calibration"):
        fit_calibration(scores, finished)


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (-1.0, 0.0), (1.0, float("inf")), (float("nan"), 0.0)])
def test_calibrations_rise(numbers):
    with pytest.raises(ValueError, match="calibration"):
        Calibration(*numbers)


def test_levels_in_prompts_are_coarse_and_at_the_beginning():
    texts = {prompt_at_level("a cat", level) for level in torch.linspace(0, 1, 101).tolist()}
    assert len(texts) == 11 and all(text.endswith(" a cat") for text in texts)


def test_a_band_is_written_and_read(tmp_path):
    write_band(tmp_path, NoiseBand(0.25, 0.75, "0.5"))
    assert read_band(tmp_path) == NoiseBand(0.25, 0.75, "0.5")
    (tmp_path / "noise_band.json").write_text('{"low": 0.5}')
    with pytest.raises(ValueError, match="low, high and name"):
        read_band(tmp_path)


def test_names_with_bands_are_those_of_rewards_that_can_have_them():
    assert reward_card("shapes-llava-reward-alignment@bands").name == "shapes-llava-reward-alignment@bands"
    assert reward_card("imagereward@bands").spread == reward_card("imagereward").spread
    with pytest.raises(ValueError, match="has no noise bands"):
        reward_card("clipscore@bands")
    with pytest.raises(ValueError, match="Unknown reward"):
        reward_card("no-such-reward@bands")
    with pytest.raises(FileNotFoundError, match="holds no noise bands"):
        load_reward("shapes-llava-reward-safety@bands")


def test_imagereward_has_bands_too(tmp_path, monkeypatch):
    plain = load_reward("shapes-imagereward")
    noisy = load_reward("shapes-imagereward")
    with torch.no_grad():
        noisy.model.mlp[-1].bias += 1
    noisy.save_pretrained(tmp_path / "0.7")
    write_band(tmp_path / "0.7", NoiseBand(0.5, 1.0, "0.7"))
    images, prompts = torch.rand(2, 3, 64, 64), ["a photo of a star", "a photo of a circle"]
    reward = load_reward("shapes-imagereward", bands=tmp_path)
    assert torch.equal(reward(images, prompts), plain(images, prompts))
    assert torch.equal(reward.at_noise(0.4)(images, prompts), plain(images, prompts))
    at_noise = reward.at_noise(0.7)(images, prompts)
    torch.testing.assert_close(at_noise, plain(images, prompts) + 1 / plain.config.std)
    assert reward.at_noise(0.7).judges == ("shapes-imagereward@0.7",)
    monkeypatch.setattr("fk_reward.rewards.registry.ASSETS", tmp_path)
    (tmp_path / "shapes-imagereward-bands").symlink_to(tmp_path / "0.7")
    named = load_reward("shapes-imagereward@bands")
    assert torch.equal(named.at_noise(0.7)(images, prompts), at_noise)
    write_band(tmp_path / "0.7", NoiseBand(0.5, 1.0, "theirs"))
    own = tmp_path / "own" / "shapes-imagereward-bands"
    noisy.save_pretrained(own / "0.6")
    write_band(own / "0.6", NoiseBand(0.5, 0.65, "mine"))
    monkeypatch.setenv("FK_REWARD_BANDS", str(tmp_path / "own"))
    assert load_reward("shapes-imagereward@bands").at_noise(0.6).judges == ("shapes-imagereward@mine",)
    monkeypatch.setenv("FK_REWARD_BANDS", str(tmp_path / "elsewhere"))
    assert load_reward("shapes-imagereward@bands").at_noise(0.6).judges == ("shapes-imagereward@theirs",)
    assert named.judges == ("shapes-imagereward@bands",) and named.card.name == "shapes-imagereward@bands"


def test_the_benchmarks_take_bands_by_name():
    """As another reward with runs, and prices, of its own name."""
    name = "shapes-llava-reward-alignment"
    typed = {"rewards": (name, f"{name}@bands"), "num_steps": 20}
    asked = ScalingRequest(out=Path(), methods=("pruning",), budgets=(80,), typed=typed)
    runs = [run for runs in plan_scaling(asked).values() for run in runs if run.method == "pruning"]
    assert [run.reward for run in runs] == [name, f"{name}@bands"] and len({run.name for run in runs}) == 2
    best = [run.reward for runs in plan_scaling(asked).values() for run in runs if run.method == "best-of-n"]
    assert best == [name], "finished images are judged by the plain reward: the same baseline is drawn once"
    alone = dataclasses.replace(asked, typed={"rewards": (f"{name}@bands",), "num_steps": 20})
    assert [run.reward for runs in plan_scaling(alone).values() for run in runs if run.method == "best-of-n"] == [
        f"{name}@bands"
    ]
    assert scored_by(asked) == (name,)
    assert PRICES["sdxl"].reward_price(f"{name}@bands") == PRICES["sdxl"].reward_price(name)
    check_reward_name(f"{name}@bands")
    assert reward_card(f"{name}@bands + shapes-clipscore").name == f"{name}@bands + shapes-clipscore"
