"""Recording of predictions: the images of chosen levels, the teachers' finished scores, and how a run goes on."""

import numpy as np
import pytest
import torch

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks import prediction_recording
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.prediction_recording import (
    KeepingReward,
    PredictionRecorder,
    expected_seconds,
    kept_steps,
    levels_of_run,
    predictions_announced,
    record_predictions,
    write_image,
)
from fk_reward.benchmarks.recording import Recorder, RecordRequest
from fk_reward.image_files import read_image
from fk_reward.rewards import CallableReward
from fk_reward.rewards.inputs import in_order
from fk_reward.training.predictions import PredictionRecords

STEPS, SEEDS = 6, 5
PROMPTS = ["a red circle", "a star"]
REQUEST = RecordRequest(
    rewards=("redness", "brightness"),
    num_seeds=SEEDS,
    batch_size=3,
    num_inference_steps=STEPS,
    keep_predictions=(0.9, 0.5),
)
ARGUMENTS = {"num_inference_steps": STEPS}


def redness(images, prompts):
    return images[:, 0].mean(dim=(1, 2))


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    rewards = {name: CallableReward(fn, name) for name, fn in (("redness", redness), ("brightness", brightness))}
    steered = FKSteeringPipeline(tiny_sd(), reward=KeepingReward(rewards))
    steered.set_progress_bar_config(disable=True)
    return steered


@pytest.fixture
def folder(pipe, tmp_path, monkeypatch):
    """`record_predictions` with the tiny pipeline; the blocks that are drawn are counted."""
    calls = []

    def load(request, *, device, dtype, kind):
        assert kind is KeepingReward
        settings = {"seed": request.seed, "prediction_format": request.prediction_format}
        return Recorder(pipe, request, ARGUMENTS), settings

    class Counted(PredictionRecorder):
        fails_at = 0

        def _drawn(self, block):
            calls.append((block.place, block.first))
            if len(calls) == self.fails_at:
                raise KeyboardInterrupt
            return super()._drawn(block)

    monkeypatch.setattr(prediction_recording, "load_recorder", load)
    monkeypatch.setattr(prediction_recording, "PredictionRecorder", Counted)

    def run(name="recorded", *, fails_at=0, **options):
        Counted.fails_at = fails_at
        calls.clear()
        out = tmp_path / name
        return record_predictions(PROMPTS, REQUEST, out, device="cpu", dtype=torch.float32, **options), list(calls)

    return run


def pixels(path):
    return in_order(read_image(path))[0]


def test_images_and_scores_are_those_of_plain_trajectories(pipe, folder):
    path, calls = folder()
    assert len(calls) == 4
    records = PredictionRecords.load(path)
    levels = levels_of_run(pipe, PROMPTS[0], ARGUMENTS)
    assert len(levels) == STEPS - 1 and levels == sorted(levels, reverse=True)
    assert records.levels == tuple(kept_steps(pipe, REQUEST, PROMPTS[0], ARGUMENTS).values())
    assert set(records.levels) < set(levels) and list(records.scores) == ["redness", "brightness"]
    for place, prompt in enumerate(PROMPTS):
        for seed, generator in enumerate(particle_generators(REQUEST.seed, [place], SEEDS)):
            image = torch.as_tensor(pipe.pipe(prompt, generator=generator, output_type="pt", **ARGUMENTS).images)
            assert records.of("redness")[place, seed] == pytest.approx(redness(image, [prompt]).item(), abs=1e-4)
            torch.testing.assert_close(pixels(records.image(place, seed, 0.0)), image[0], atol=1 / 255, rtol=0)


def test_predictions_are_what_a_reward_would_have_been_asked_about(pipe, folder):
    records = PredictionRecords.load(folder()[0])
    seen = []

    def keep(images, prompts):
        seen.append(images.clone())
        return images.mean(dim=(1, 2, 3))

    pipe.reward, keeper = CallableReward(keep, "keep"), pipe.reward
    try:
        steps = tuple(kept_steps(pipe, REQUEST, PROMPTS[1], ARGUMENTS))
        search = prediction_recording.ScoreAll(num_particles=SEEDS, steps=steps)
        pipe(PROMPTS[1], generator=particle_generators(0, [1], SEEDS), search=search, **ARGUMENTS)
    finally:
        pipe.reward = keeper
    for level, images in zip(records.levels, seen[:-1], strict=True):
        for seed in range(SEEDS):
            torch.testing.assert_close(pixels(records.image(1, seed, level)), images[seed], atol=2 / 255, rtol=0)


def test_what_is_recorded_is_not_drawn_again_and_processes_share(folder, tmp_path):
    whole = PredictionRecords.load(folder()[0])
    with pytest.raises(KeyboardInterrupt):
        folder("stopped", fails_at=3)
    assert not (tmp_path / "stopped" / "predictions.json").exists()
    path, calls = folder("stopped")
    assert calls == [(1, 0), (1, 3)]
    parts = [folder("shared", shard=(index, 2)) for index in range(2)]
    assert parts[0][0] is None and len(parts[0][1]) == len(parts[1][1]) == 2
    for other in (path, parts[1][0]):
        read = PredictionRecords.load(other)
        np.testing.assert_allclose(read.of("redness"), whole.of("redness"), atol=1e-5)
        assert read.levels == whole.levels


def test_the_pipeline_is_as_before(pipe):
    before = (pipe.preview, pipe.reward)
    levels_of_run(pipe, PROMPTS[0], ARGUMENTS)
    assert (pipe.preview, pipe.reward) == before


def test_too_many_levels_for_the_steps_are_refused(pipe):
    request = RecordRequest(keep_predictions=(0.5, 0.51, 0.52), num_inference_steps=STEPS)
    with pytest.raises(ValueError, match="nearest to step"):
        kept_steps(pipe, request, PROMPTS[0], ARGUMENTS)


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 1e-6), ("webp", 0.1), ("jpg", 0.1)])
def test_images_are_made_smaller_and_kept_in_a_format(tmp_path, kind, tolerance):
    image = torch.linspace(0, 1, 64).expand(3, 48, 64)
    write_image(tmp_path / f"a.{kind}", image, longest_side=32)
    read = pixels(tmp_path / f"a.{kind}")
    assert read.shape == (3, 24, 32)
    expected = torch.nn.functional.interpolate(image[None], (24, 32), mode="bicubic", antialias=True)[0].clamp(0, 1)
    assert (read - expected).abs().max() < 0.5 / 255 + tolerance
    write_image(tmp_path / f"b.{kind}", image, longest_side=64)
    assert pixels(tmp_path / f"b.{kind}").shape == (3, 48, 64)


def test_size_is_said_before_and_time_where_the_speed_is_known():
    text = predictions_announced(["a"] * 10, REQUEST, 20)
    assert "10 prompts x 5 seeds x 20 steps: 1,000 sample steps; 150 images to decode" in text
    shapes = RecordRequest(rewards=("shapes-clipscore",), keep_predictions=(0.5,), num_seeds=2)
    if not torch.cuda.is_available():
        assert expected_seconds(shapes, 10, 8, None) is None
    one, ten = (expected_seconds(shapes, number, 8, "1") for number in (1, 10))
    assert one > 0 and ten == pytest.approx(10 * one)
    more = expected_seconds(
        RecordRequest(rewards=("shapes-clipscore",), keep_predictions=(0.5, 0.8), num_seeds=2), 1, 8, "1"
    )
    assert more > one, "another kept prediction is another image to decode"


@pytest.mark.parametrize("wrong", [{"prediction_format": "bmp"}, {"keep_predictions": (1.5,)}, {"prediction_size": 4}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RecordRequest(**wrong)
