"""From trained adapters to the table and to the files that ship: figures by hand, and adapters that were mixed up."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fk_reward.benchmarks.preferences import Answers, answer_rows
from fk_reward.models import EMBEDDED_MODELS
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward import entries
from fk_reward.training import read_preferences
from tests.shapes.preference_fixtures import write_preferences
from tests.tiny.phi3_vision import write_phi3_vision

KINDS = ("alignment-plain-bt", "alignment-plain-gpm", "fidelity-plain-bt", "safety-plain-binary")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Preferences that are easily learnt, a backbone, and one run of each of four kinds in `adapters`."""
    from train_adapters import run_flags, train

    folder = tmp_path_factory.mktemp("trained")
    write_preferences(folder / "preferences", num=8)
    backbone = str(write_phi3_vision(folder / "backbone"))
    for kind in KINDS:
        run = folder / "adapters" / f"{kind}-seed0"
        options = {"preferences": folder / "preferences", "backbone": backbone, "max_steps": 12}
        train(kind, [*run_flags(kind, seed=0, folder=run, **options), "--learning_rate=5e-3"])
    return folder


def table(folder, adapters, output, **options):
    import check_adapters

    check_adapters.compare_adapters(adapters, folder / "preferences", output=output, **options)
    tables = json.loads((output / "adapters.json").read_text())
    return {(row["reward"], row["file"]): row for rows in tables.values() for row in rows}


def test_what_was_learnt_is_in_the_table_and_mixed_up_adapters_are_noticed(folder, tmp_path):
    rows = table(folder, folder / "adapters", tmp_path / "check")
    assert rows["alignment-plain-bt", "overall"]["accuracy"] == 1
    assert rows["alignment-plain-gpm", "overall"]["accuracy"] == 1
    assert rows["fidelity-plain-bt", "heldout"]["accuracy"] == 1
    assert rows["safety-plain-binary", "heldout"]["auc"] == 1
    assert rows["safety-plain-binary", "heldout"]["accuracy"] > 0.5
    assert rows["shapes-clipscore", "heldout-captions"]["num"] == 8
    assert "| alignment-plain-bt | 1 | overall | 32 | 1.000 |" in (tmp_path / "check" / "adapters.md").read_text()
    mixed = tmp_path / "adapters"
    for source, target in (("alignment", "fidelity"), ("fidelity", "alignment")):
        shutil.copytree(folder / "adapters" / f"{source}-plain-bt-seed0", mixed / f"{target}-plain-bt-seed0")
    wrong = table(folder, mixed, tmp_path / "wrong", reward=[])
    assert wrong["alignment-plain-bt", "overall"]["accuracy"] == 0
    assert wrong["fidelity-plain-bt", "heldout"]["accuracy"] == 0


def answers(*logits):
    prompts = tuple(f"prompt {i // 2}" for i in range(len(logits)))
    return Answers(torch.tensor(logits).double(), torch.ones(len(logits), dtype=torch.bool), prompts, is_labelled=False)


def test_seeds_are_averaged_as_by_hand():
    from check_adapters import over_seeds

    seeds = [
        {"captions": answers(1.0, 1.0, -1.0, 0.0), "scenes": answers(1.0, -1.0)},  # 2 of 4 with a tie, 1 of 2
        {"captions": answers(1.0, 1.0, 1.0, 1.0), "scenes": answers(1.0, 1.0)},
    ]
    runs = [(found, answer_rows("kind", found, label_logits=False)) for found in seeds]
    captions, scenes, overall = over_seeds("kind", runs)
    assert (captions["accuracy"], captions["seeds"], captions["accuracy_text"]) == (0.75, 2, "0.750 ± 0.354")
    assert captions["accuracy_sd"] == pytest.approx(0.5 / 2**0.5)
    assert captions["accuracy_without_ties"] == pytest.approx((2 / 3 + 1) / 2)
    assert (captions["ties"], scenes["accuracy"], overall["accuracy"]) == (0.125, 0.75, 0.75)
    assert (overall["file"], overall["num"]) == ("overall", 6)
    assert overall["low"] < 0.75 < overall["high"]
    (alone,) = over_seeds("kind", [runs[0]])[:1]
    assert (alone["accuracy_text"], alone["accuracy_sd"]) == ("0.500", None)


def test_the_best_on_validation_that_scores_single_images_ships(folder, tmp_path):
    from check_adapters import best_run

    runs = []
    results = {"plain-seed0": (0.89, 0.5), "plain-seed1": (0.89, 0.5), "plain-seed2": (0.89, 0.5)}  # right oftener
    results |= {"skipca-seed0": (0.8, 0.6), "skipca-seed1": (0.9, 0.4), "skipca-seed2": (0.9, 0.4), "gpm-seed0": (1, 0)}
    for name, (accuracy, loss) in results.items():
        kind = "alignment-plain-gpm" if "gpm" in name else "alignment-plain-bt"
        runs.append(tmp_path / name)
        runs[-1].mkdir()
        shutil.copy(folder / "adapters" / f"{kind}-seed0" / "reward_config.json", runs[-1])
        (runs[-1] / "all_results.json").write_text(json.dumps({"eval_accuracy": accuracy, "eval_loss": loss}))
    assert best_run(runs).name == "skipca-seed0"
    assert best_run(runs[:4]).name == "plain-seed0"
    with pytest.raises(ValueError, match="scores single images"):
        best_run(runs[-1:])


@pytest.fixture
def assets(folder, tmp_path, monkeypatch):
    """The exported adapters and the backbone, under the names of the package."""
    import check_adapters

    check_adapters.export_adapters(folder / "adapters", tmp_path)
    monkeypatch.setitem(EMBEDDED_MODELS, "shapes-mllm", folder / "backbone")
    for dimension in ("alignment", "fidelity", "safety"):
        name = f"shapes-llava-reward-{dimension}"
        monkeypatch.setitem(EMBEDDED_MODELS, name, tmp_path / name)
    return tmp_path


def test_files_are_half_and_scores_nearly_the_same(folder, assets):
    files = list(assets.rglob("*.safetensors"))
    assert len(files) == 6
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}
    items = read_preferences(folder / "preferences" / "alignment" / "heldout-scenes.parquet")
    images, prompts = [item.chosen.load() for item in items], [item.prompt for item in items]
    for dimension in ("alignment", "fidelity", "safety"):
        entry = getattr(entries, f"SHAPES_{dimension.upper()}")
        reward = entry.build()
        (run,) = (folder / "adapters").glob(f"{dimension}-plain-b*-seed0")
        original = load_reward("llava-reward", adapter=run, torch_dtype=torch.float32)
        trained = {weight.dtype for weight in reward.model.adapters.parameters_of(dimension).values()}
        assert trained == {weight.dtype for weight in reward.model.projectors.parameters()} == {torch.float32}
        assert reward.card == entry.card
        torch.testing.assert_close(reward(images, prompts), original(images, prompts), atol=1e-2, rtol=0)


def test_the_rewards_of_the_package_share_their_backbone(assets):
    rewards = [entry.build() for entry in (entries.SHAPES_ALIGNMENT, entries.SHAPES_FIDELITY, entries.SHAPES_SAFETY)]
    assert len({id(reward.model) for reward in rewards}) == 1
    assert [reward.dimension for reward in rewards] == ["alignment", "fidelity", "safety"]
    assert rewards[0].model.backbone.options == {"num_crops": 1}
