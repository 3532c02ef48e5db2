"""An adapter for a noise band, from recorded predictions to a calibrated checkpoint that a reward loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.bradley_terry import BRADLEY_TERRY, bradley_terry_loss
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.rewards.noise_bands import fit_calibration
from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments, parse_arguments
from fk_reward.training.band_training import BandData
from fk_reward.training.run import make_trainer, run_training
from tests.tiny.training import make_model
from tests.training.recorded import write_recording

BASE = {"validation_fraction": 0.25, "backbone_dtype": "float32", "num_crops": 1, "lora_rank": 4, "lora_alpha": 8}
TRAINING = {
    **{"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2},
    **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "soft_targets": 1.0, "save_strategy": "epoch"},
    **{"eval_strategy": "no", "load_best_model_at_end": False},
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("recorded"), num_prompts=8)


@pytest.fixture(scope="module")
def plain(tiny_phi, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    make_model(tiny_phi).checkpoint().save(folder, overwrite=True)
    return folder


def arguments(tiny_phi, recording, plain, out, **changes):
    settings = BASE | {
        "backbone": str(tiny_phi),
        "dimension": "alignment@0.6",
        "noise_band": [0.5, 0.7],
        "train_data": str(recording.folder),
        "initial_adapter": str(plain),
        "num_pairs": 160,
    }
    return RewardArguments(**settings | changes), LlavaRewardTrainingArguments(output_dir=str(out), **TRAINING)


@pytest.fixture(scope="module")
def trained(tiny_phi, recording, plain, tmp_path_factory):
    out = tmp_path_factory.mktemp("band") / "0.6"
    reward, training = arguments(tiny_phi, recording, plain, out)
    trainer = make_trainer(reward, training)
    metrics = run_training(trainer, reward, training)
    return out, metrics, BandData.read(reward, seed=training.seed)


def scores_at(reward, recording, place, level):
    images = torch.stack([recording.source(place, seed, level).load() for seed in range(recording.num_seeds)])
    return reward(images, recording.prompts[place])


def test_the_order_of_predictions_is_learnt_and_brought_into_the_unit_of_finished_scores(
    tiny_phi, plain, recording, trained
):
    out, metrics, data = trained
    reward = load_reward("llava-reward", adapter=plain, backbone=tiny_phi, torch_dtype=torch.float32, bands=out)
    assert reward.uncalibrated == () and metrics["calibration_scale"] > 0
    held = [place for place, text in enumerate(recording.prompts) if text in data.held_out]
    assert len(held) == 2
    at_noise = reward.at_noise(0.6)
    for place in held:
        order = np.corrcoef(scores_at(at_noise, recording, place, 0.6), recording.of("grey")[place])[0, 1]
        assert order > 0.9, "prompts that were not trained on"
    # what is calibrated once more is calibrated already, on the prompts that were trained on
    places = [place for place in range(8) if place not in held]
    table = torch.stack([scores_at(at_noise, recording, place, 0.6) for place in places])
    again = fit_calibration(table, torch.as_tensor(recording.of("grey")[places]))
    assert again.scale == pytest.approx(1.0, rel=1e-3) and again.offset == pytest.approx(0.0, abs=1e-3)


def test_the_checkpoint_says_what_it_is(trained):
    config = load_own_checkpoint(trained[0]).config
    assert config.band.name == "0.6" and config.noise_band == (0.5, 0.7) and not config.level_in_prompt
    assert set(config.calibration) == {"scale", "offset"}


def test_a_finished_training_is_calibrated_if_it_is_not_and_left_alone_if_it_is(
    tiny_phi, recording, plain, trained, tmp_path
):
    out, metrics, _ = trained
    reward, training = arguments(tiny_phi, recording, plain, out, resume=True)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found = run_training(make_trainer(reward, training), reward, training)
    assert "calibration_scale" not in found
    assert all(path.read_bytes() == content for path, content in before.items())
    config = load_own_checkpoint(out).config
    uncalibrated = config.to_json().replace(config.to_json().split('"calibration": ')[1].split("}")[0] + "}", "null")
    (out / "reward_config.json").write_text(uncalibrated)
    found = run_training(make_trainer(reward, training), reward, training)
    assert found["calibration_scale"] == pytest.approx(metrics["calibration_scale"], rel=1e-6)


def test_it_begins_as_the_plain_adapter(tiny_phi, recording, plain, tmp_path):
    reward, training = arguments(tiny_phi, recording, plain, tmp_path / "out")
    model = make_trainer(reward, training).reward
    images = [recording.source(0, seed, 0.6).load() for seed in range(3)]
    own = load_reward("llava-reward", adapter=plain, backbone=tiny_phi, torch_dtype=torch.float32)
    torch.testing.assert_close(model.eval()(images, ["a star"] * 3)[:, 0], own(torch.stack(images), "a star"))


def test_the_curriculum_is_taken_in_its_order(tiny_phi, recording, plain, tmp_path):
    reward, training = arguments(tiny_phi, recording, plain, tmp_path / "out", num_pairs=16)
    trainer = make_trainer(reward, training)
    assert list(trainer._get_train_sampler()) == list(range(16))
    training.num_train_epochs = 2
    with pytest.raises(ValueError, match="one epoch"):
        make_trainer(reward, training)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_band": None}, "num_pairs belong to an adapter for predictions"),
        ({"noise_band": [0.5]}, "two numbers"),
        ({"dimension": "alignment"}, "noise_band"),
        ({"noise_band": [0.7, 0.5]}, "low < high"),
        ({"teacher": "grays"}, "It has grey, dark"),
        ({"train_data": "nowhere"}, "keep-predictions"),
        ({"initial_adapter": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_phi, recording, plain, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        make_trainer(*arguments(tiny_phi, recording, plain, tmp_path / "out", **changes))


def test_recordings_are_for_bands(tiny_phi, recording, tmp_path):
    reward = RewardArguments(backbone=str(tiny_phi), dimension="alignment", train_data=str(recording.folder), **BASE)
    with pytest.raises(ValueError, match="give noise_band"):
        make_trainer(reward, LlavaRewardTrainingArguments(output_dir=str(tmp_path), **TRAINING))


def test_a_file_of_settings_names_a_band(tmp_path):
    lines = ["backbone: b", "dimension: alignment@0.5", "train_data: a, b", "noise_band: [0.4, 0.6]", "num_pairs: 10"]
    (tmp_path / "bands.yaml").write_text("\n".join([*lines, "soft_targets: 1.0", "output_dir: o", "use_cpu: true"]))
    reward, training = parse_arguments([str(tmp_path / "bands.yaml"), "--clean_fraction", "0.5"])
    assert reward.noise_band == [0.4, 0.6] and reward.num_pairs == 10 and reward.clean_fraction == 0.5
    assert training.soft_targets == 1.0


def test_soft_targets_are_smallest_at_the_probability_that_they_ask_for():
    items = torch.zeros(1, 2, 1, requires_grad=True)
    wanted = torch.tensor([0.8])
    BRADLEY_TERRY.soft_loss(items, wanted, temperature=1.0).backward()
    torch.testing.assert_close(items.grad.flatten(), torch.tensor([0.5 - 0.8, 0.8 - 0.5]))
    right = torch.tensor([[[np.log(0.8 / 0.2)], [0.0]]], dtype=torch.float64, requires_grad=True)
    BRADLEY_TERRY.soft_loss(right, wanted, temperature=1.0).backward()
    torch.testing.assert_close(right.grad, torch.zeros_like(right), atol=1e-7, rtol=0)
    certain = BRADLEY_TERRY.soft_loss(torch.ones(3, 2, 1), torch.ones(3), temperature=0.1)
    torch.testing.assert_close(certain, bradley_terry_loss(torch.ones(3), torch.ones(3)))


def test_margins_and_soft_targets_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        LlavaRewardTrainingArguments(output_dir=str(tmp_path), use_cpu=True, margin_scale=1.0, soft_targets=1.0)


def test_the_settings_for_sdxl_are_understood():
    path = Path(__file__).parents[2] / "examples" / "noise_aware_sdxl.yaml"
    reward, training = parse_arguments([str(path), "--bf16=False", "--use_cpu"])
    assert reward.noise_band == [0.85, 0.97] and reward.dimension == "alignment@0.9"
    assert training.soft_targets == 1.0 and training.num_train_epochs == 1
