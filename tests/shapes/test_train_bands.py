"""The recipe of the noise bands in small: every stage runs and goes on, and the bound is what a perfect judge has."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import load_reward
from fk_reward.rewards.noise_bands import NoiseBand


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All stages, as `python examples/shapes/train_bands.py --smoke` and `measure_bands.py --smoke` run them."""
    import measure_bands
    import train_bands

    root = tmp_path_factory.mktemp("bands")
    train_bands.main(root, smoke=True)
    measure_bands.main(root, smoke=True)
    return root


@pytest.mark.long
def test_every_stage_leaves_its_results(root):
    import train_bands

    tables = json.loads((root / "measured" / "deterministic" / "noise_accuracy.json").read_text())
    judges = {row["judge"] for row in tables["rows"]}
    assert sum(row["judge"] == train_bands.REWARD for row in tables["rows"]) == 4 * 3, "scored once at each level"
    assert all(("pairs_gain" in row) == (row["judge"] != train_bands.REWARD) for row in tables["rows"])
    means, differences = tables["more"].values()
    assert {row["judge"] for row in means} == {train_bands.REWARD, "bands", "0.9-clean"}
    assert {row["judge"] for row in differences} == {
        f"bands - {train_bands.REWARD}", f"0.9-clean - {train_bands.REWARD}", "0.9-clean - bands"
    }  # fmt: skip
    assert train_bands.REWARD in judges and any("@0.9 (bands, seed 0)" in judge for judge in judges)
    assert any("@0.9-clean" in judge for judge in judges), "the control"
    assert {row["reference"] for row in tables["rows"]} == set(train_bands.TEACHERS)
    rows = json.loads((root / "measured" / "bound.json").read_text())
    assert len(rows) == len(train_bands.SMOKE.levels) * len(train_bands.TEACHERS)


@pytest.mark.long
def test_a_stage_that_is_done_is_not_done_again(root):
    import measure_bands
    import train_bands

    before = {path: path.stat().st_mtime_ns for path in (root / "recorded").rglob("*.png")}
    train_bands.record(root, smoke=True)
    assert {path: path.stat().st_mtime_ns for path in (root / "recorded").rglob("*.png")} == before
    redrawn = (root / "measured" / "redraws-0-of-1.jsonl").read_bytes()
    measure_bands.bound(root, smoke=True, shard="1/2")
    assert (root / "measured" / "redraws-0-of-1.jsonl").read_bytes() == redrawn
    assert not (root / "measured" / "redraws-1-of-2.jsonl").exists(), "whoever drew it"


@pytest.mark.long
def test_what_is_exported_is_loaded_by_name(root, tmp_path, monkeypatch):
    import train_bands

    train_bands.export(root, kinds=("0.9",), assets=tmp_path)
    monkeypatch.setattr("fk_reward.rewards.registry.ASSETS", tmp_path)
    reward = load_reward(f"{train_bands.REWARD}@bands")
    assert reward.at_noise(0.9).judges == (f"{train_bands.REWARD}@0.9",)
    assert reward.at_noise(0.5) is reward
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(
        reward(images, "a photo of a star"), load_reward(train_bands.REWARD)(images, "a photo of a star")
    )


@pytest.mark.long
def test_imagereward_learns_from_the_same_recordings(root):
    import train_imagereward_bands as recipe

    recipe.main(root, kinds=("0.9",), solvers=("deterministic",), num_pairs=8, batch_size=4, held_out_fraction=0.34)
    folder = root / "imagereward" / "seed0"
    reward = load_reward("shapes-imagereward", bands=folder)
    assert list(reward.bands) == [NoiseBand(0.8, 0.96, "0.9")]
    assert reward.at_noise(0.9)(torch.rand(1, 3, 64, 64), "a photo of a star").isfinite().all()


def test_levels_are_those_of_the_scheduler_after_so_many_steps():
    """By the formula of the variance-preserving family, of the betas that the recipe trains with."""
    from train_bands import BANDS, KINDS, LEVELS
    from train_unet import make_scheduler

    config = make_scheduler().config
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps) ** 2
    levels = np.sqrt(1 - np.cumprod(1 - betas))
    expected = [levels[999 - 10 * percent] for percent in (20, 40, 50, 60, 70, 80, 90)]
    assert pytest.approx(expected, abs=1e-3) == LEVELS
    judged = [
        [level for level in LEVELS if low <= level < high] for low, high in (KINDS[b]["noise_band"] for b in BANDS)
    ]
    assert [len(found) for found in judged] == [2, 2, 1]


@pytest.mark.long
def test_what_was_drawn_already_is_the_recording_that_would_be_made(tmp_path):
    """Against `record_predictions` from the same seed: levels, images and scores."""
    import sample_images
    import train_bands

    from fk_reward.shapes import benchmark_prompts
    from fk_reward.training.predictions import FINISHED, PredictionRecords

    sample_images.main(output_dir=tmp_path / "samples", num_prompts=1, per_prompt=2, seed=1000)
    train_bands.reuse(tmp_path / "samples", root=tmp_path, per_prompt=2)
    reused = PredictionRecords.load(train_bands.recorded(tmp_path, "stochastic", "train"))
    assert reused.levels == pytest.approx(train_bands.LEVELS, abs=2e-3)
    asked = train_bands.request_of(train_bands.Size(num_seeds=2), "stochastic", "train")
    request = dataclasses.replace(asked, seed=1000, keep_predictions=reused.levels)
    prompts = [prompt.text for prompt in benchmark_prompts(1, "validation")]
    path = train_bands.record_predictions(prompts, request, tmp_path / "drawn", device="cpu", dtype=torch.float32)
    drawn = PredictionRecords.load(path)
    assert reused.levels == pytest.approx(drawn.levels) and reused.prompts == drawn.prompts
    for level, seed in itertools.product((*drawn.levels, FINISHED), range(2)):
        first, second = (records.source(0, seed, level).load() for records in (reused, drawn))
        torch.testing.assert_close(first, second, atol=1.5 / 255, rtol=0)
    for name in train_bands.TEACHERS:  # of 8-bit images here
        np.testing.assert_allclose(reused.of(name), drawn.of(name), atol=0.05)


def test_training_prompts_are_taken_from_all_tasks():
    from train_bands import Size

    from fk_reward.shapes import train_prompts

    texts = [prompt.text for prompt in train_prompts()]
    assert Size().prompts("train") == texts
    few = Size(num_train=12).prompts("train")
    spread, first = ({prompt.task for prompt in train_prompts() if prompt.text in some} for some in (few, texts[:12]))
    assert len(few) == len(set(few)) == 12 and len(spread) >= 3 > len(first)


def test_differences_between_kinds_are_of_means_over_seeds(tmp_path):
    """By hand, of judges whose scores are known: one in order, one against it in half of its runs."""
    import measure_bands

    from fk_reward.benchmarks.noise_accuracy import LevelScores
    from fk_reward.training.predictions import PredictionRecords

    finished = np.arange(12.0).reshape(3, 4)
    records = PredictionRecords(tmp_path, ("a", "b", "c"), (0.9,), {"teacher": finished})
    found = [
        LevelScores(0.9, measure_bands.REWARD, "plain", np.zeros((3, 4))),
        LevelScores(0.9, "bands, seed 0", "x", finished),
        LevelScores(0.9, "bands, seed 1", "x", -finished),
        LevelScores(0.9, "all, seed 0", "y", finished),
    ]
    (_, _, means), (_, _, differences) = measure_bands.tables_over_seeds(found, records)
    assert [(row["judge"], row["pairs"], row["num_seeds"]) for row in means] == [
        (measure_bands.REWARD, 0.5, 1), ("bands", 0.5, 2), ("all", 1.0, 1)
    ]  # fmt: skip
    assert means[1]["deviation"] == pytest.approx(0.5**0.5) and means[0]["deviation"] is None
    gains = {row["judge"]: row["pairs_gain"] for row in differences}
    assert gains == {f"bands - {measure_bands.REWARD}": 0.0, f"all - {measure_bands.REWARD}": 0.5, "all - bands": 0.5}


def test_names_stand_for_other_folders_inside_the_block(tmp_path):
    from train_bands import models_of

    from fk_reward.models import EMBEDDED_MODELS, resolve_model

    (tmp_path / "shapes-sd").mkdir()
    before = dict(EMBEDDED_MODELS)
    with models_of([tmp_path / "shapes-sd"]):
        assert resolve_model("shapes-sd") == str(tmp_path / "shapes-sd")
        assert resolve_model("shapes-clip") == str(before["shapes-clip"])
    assert before == EMBEDDED_MODELS
    with (
        pytest.raises(ValueError, match="should be folders called shapes-sd, .*; got unet"),
        models_of([tmp_path / "unet"]),
    ):
        pass


def test_the_bound_is_the_correlation_with_the_mean_of_the_state():
    """States of variance 1, redraws of variance 1: the rank correlation of a mean with one redraw is known."""
    from measure_bands import bound_row

    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(400, 6, 1)) + rng.normal(size=(400, 6, 9))
    row = bound_row(rewards, [str(place) for place in range(400)])
    # of two normals with correlation rho, pairs are in order with 1/2 + asin(rho) / pi; eight others give the mean
    rho = 1 / np.sqrt((1 + 1 / 8) * 2)
    assert row["pairs"] == pytest.approx(0.5 + np.arcsin(rho) / np.pi, abs=4 * 0.5 / np.sqrt(400 * 15))
    nothing = bound_row(rng.normal(size=(200, 6, 4)), [str(place) for place in range(200)])
    assert nothing["pairs"] == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(200 * 15))


def test_copies_part_where_they_should():
    from measure_bands import Redraw

    population = Redraw(num_particles=2, num_redraws=3, step=4).population()
    assert population.sizes(10) == {4: 6} and population.max_particles == 6 and population.copies
    assert population.advance(torch.tensor([1.0, 0.0]), step=4).tolist() == [0, 0, 0, 1, 1, 1]


def test_the_same_images_are_judged_by_other_models(tmp_path, monkeypatch):
    import train_bands

    from fk_reward.benchmarks.prediction_recording import write_image
    from fk_reward.training.predictions import FINISHED, PredictionRecords, image_name

    folder = train_bands.recorded(tmp_path / "first", "deterministic", "heldout")
    for seed, level in itertools.product(range(2), (0.9, FINISHED)):
        image = torch.full((3, 64, 64), 0.3 * seed + 0.1)
        write_image(folder / image_name(0, seed, level, "png"), image, longest_side=64)
    PredictionRecords(folder, ("a photo of a star",), (0.9,), {"other": np.zeros((1, 2))}).save()

    monkeypatch.setitem(EMBEDDED_MODELS, "brightness", folder)
    monkeypatch.setattr(
        train_bands, "load_reward", lambda _: load_reward(lambda images, prompts: images.mean(dim=(1, 2, 3)))
    )
    for _ in range(2):  # again: links stay
        train_bands.rescore(tmp_path / "first", [tmp_path / "brightness"], tmp_path / "second")
    found = PredictionRecords.load(train_bands.recorded(tmp_path / "second", "deterministic", "heldout"))
    assert found.prompts == ("a photo of a star",)
    np.testing.assert_allclose(found.of("brightness"), [[0.1, 0.4]], atol=1 / 255)
    np.testing.assert_array_equal(found.of("other"), np.zeros((1, 2)))
    assert list((tmp_path / "second" / "recorded").iterdir()) == [found.folder], "only what there is"
