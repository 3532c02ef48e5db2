"""The matrix of adapters in small: every kind trains, runs do not depend on one another, a killed matrix goes on."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from fk_reward.rewards import load_reward
from tests.shapes.preference_fixtures import png, write_preferences
from tests.tiny.phi3_vision import write_phi3_vision

STEPS = 2


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_preferences(folder / "preferences")
    backbone = write_phi3_vision(folder / "backbone")
    return {"preferences": folder / "preferences", "backbone": str(backbone), "max_steps": STEPS}


@pytest.fixture(scope="module")
def matrix(options, tmp_path_factory):
    """All kinds with one seed, trained one after the other."""
    import train_adapters

    folder = tmp_path_factory.mktemp("matrix")
    train_adapters.main(output_dir=folder, seeds="0", **options)
    return folder


def weights(run):
    files = (run / "adapter" / "adapter_model.safetensors", run / "reward.safetensors")
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_matrix_is_what_the_names_say(matrix):
    objectives = {"bt": "bradley-terry", "gpm": "general-preference", "binary": "binary"}
    kinds = [run.name.removesuffix("-seed0") for run in matrix.iterdir()]
    assert sorted(kinds) == sorted(
        [f"alignment-{ca}-{loss}" for ca in ("skipca", "plain") for loss in ("bt", "gpm")]
        + [f"fidelity-{ca}-bt" for ca in ("skipca", "plain")]
        + [f"safety-{ca}-binary" for ca in ("skipca", "plain")]
    )
    for kind in kinds:
        dimension, attention, loss = kind.split("-")
        reward = load_reward("llava-reward", adapter=matrix / f"{kind}-seed0", torch_dtype=torch.float32)
        assert (reward.config.dimension, reward.config.objective) == (dimension, objectives[loss])
        assert reward.config.cross_attention == (attention == "skipca")
        assert reward.model.backbone.options == {"num_crops": 1}  # as trained, without a word about it


def test_a_run_is_the_same_alone_and_in_the_matrix(matrix, options, tmp_path):
    import train_adapters

    train_adapters.main(only=["fidelity-plain-bt"], output_dir=tmp_path, seeds="0,1", **options)
    alone = weights(tmp_path / "fidelity-plain-bt-seed0")
    assert equal(alone, weights(matrix / "fidelity-plain-bt-seed0"))
    assert not equal(alone, weights(tmp_path / "fidelity-plain-bt-seed1"))


def test_finished_runs_are_skipped_and_killed_ones_go_on(matrix, options, tmp_path, capsys):
    import train_adapters

    shutil.copytree(matrix / "safety-plain-binary-seed0", tmp_path / "safety-plain-binary-seed0")
    killed = tmp_path / "alignment-plain-bt-seed0"
    shutil.copytree(matrix / killed.name / "checkpoint-1", killed / "checkpoint-1")
    kinds = ["safety-plain-binary", "alignment-plain-bt"]
    train_adapters.main(only=kinds, output_dir=tmp_path, seeds="0", **options)
    told = capsys.readouterr().out
    assert "safety-plain-binary-seed0: finished already" in told
    assert "alignment-plain-bt-seed0: accuracy" in told
    assert equal(weights(killed), weights(matrix / killed.name))


def test_shards_share_the_matrix(monkeypatch, tmp_path):
    import train_adapters

    done = []
    monkeypatch.setattr(train_adapters, "train", lambda kind, flags: done.append((kind, flags[3])) or 0.5)
    for shard in ("0/3", "1/3", "2/3"):
        train_adapters.main(seeds="0,1", output_dir=tmp_path, shard=shard)
    assert len(done) == len(set(done)) == 2 * len(train_adapters.KINDS)


def test_an_unknown_kind_is_refused():
    import train_adapters

    with pytest.raises(ValueError, match="alignment-skipca-bt"):
        train_adapters.main(only=["alignment"])


def test_each_file_of_settings_stands_for_itself(matrix):
    from train_adapters import KINDS, SETTINGS

    from fk_reward.training.arguments import parse_arguments

    for kind in KINDS:
        reward, training = parse_arguments([str(SETTINGS / f"{kind}.yaml"), "--use_cpu"])
        assert (reward.backbone, reward.lora_rank, reward.num_crops) == ("shapes-mllm", 12, 1)
        assert training.output_dir == f"runs/adapters/{kind}"
        assert reward.train_data == f"runs/preferences/{kind.split('-')[0]}/train.parquet"


def test_images_of_the_fixture_differ():
    assert len({png(channel, seed) for channel in (0, 2) for seed in range(4)}) == 8
