"""Recording: plain trajectories, what every reward said of each of their predictions, and how a run goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks import recording
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.recording import (
    Block,
    EachReward,
    Recorder,
    RecordRequest,
    announced,
    assembled,
    record,
    recording_task,
)
from fk_reward.output_folder import FolderInUseError, hold_folder
from fk_reward.rewards import CallableReward
from fk_reward.search import Pruning
from fk_reward.search.replay.records import RewardRecords

STEPS, SEEDS = 4, 5
PROMPTS = ["a red circle", "a star"]
REQUEST = RecordRequest(rewards=("redness", "brightness"), num_seeds=SEEDS, batch_size=3, num_inference_steps=STEPS)
ARGUMENTS = {"num_inference_steps": STEPS}


def redness(images, prompts):
    return images[:, 0].mean(dim=(1, 2)) + 0.001 * len(prompts[0])


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def rewards():
    return {name: CallableReward(fn, name) for name, fn in (("redness", redness), ("brightness", brightness))}


@pytest.fixture(scope="module")
def pipe(tiny_sd, rewards):
    steered = FKSteeringPipeline(tiny_sd(), reward=EachReward(rewards))
    steered.set_progress_bar_config(disable=True)
    return steered


@pytest.fixture
def folder(pipe, tmp_path, monkeypatch):
    """`record` with the tiny pipeline; the number of its calls is counted."""
    calls = []

    class Counted(Recorder):
        def _drawn(self, block):
            calls.append(block)
            if len(calls) == self.fails_at:
                raise KeyboardInterrupt
            return super()._drawn(block)

    def load(request, *, device, dtype):
        return Counted(pipe, request, ARGUMENTS), {"seed": request.seed, "num_seeds": request.num_seeds}

    monkeypatch.setattr(recording, "load_recorder", load)
    Counted.fails_at = 0

    def run(name="records", **options):
        Counted.fails_at = options.pop("fails_at", 0)
        calls.clear()
        request = options.pop("request", REQUEST)
        path = record(PROMPTS, request, tmp_path / name, device="cpu", dtype=torch.float32, **options)
        return path, list(calls)

    return run


@pytest.fixture(scope="module")
def whole(pipe):
    task = recording_task(PROMPTS, REQUEST)
    answers = Recorder(pipe, REQUEST, ARGUMENTS).answer(range(len(task.samples)), task.samples)
    return assembled(answers, PROMPTS, {})


def test_the_finished_images_are_those_of_the_plain_pipeline(pipe, whole):
    for place, prompt in enumerate(PROMPTS):
        for seed, generator in enumerate(particle_generators(REQUEST.seed, [place], SEEDS)):
            image = pipe.pipe(prompt, generator=generator, output_type="pt", **ARGUMENTS).images
            for name, fn in (("redness", redness), ("brightness", brightness)):
                expected = fn(torch.as_tensor(image), [prompt]).item()
                assert whole.of(name)[place, seed, -1] == pytest.approx(expected, abs=1e-4)


def test_the_predictions_are_those_that_a_search_is_told_of(pipe, whole):
    search = Pruning(num_particles=SEEDS, keep=(3, 2), at=(0.25, 0.75))
    generators = particle_generators(REQUEST.seed, [1], SEEDS)
    trace = pipe(PROMPTS[1], generator=generators, search=search, num_images_per_prompt=2, **ARGUMENTS).trace
    kept = np.arange(SEEDS)
    for step in trace.steps[:-1]:
        np.testing.assert_allclose(step.rewards[0], whole.of("redness")[1, kept, step.step], atol=1e-4)
        kept = kept[step.ancestors[0]]
    np.testing.assert_allclose(trace.steps[-1].rewards[0], whole.of("redness")[1, kept, -1], atol=1e-4)


def test_shapes_and_texts(whole):
    assert whole.shape == (2, SEEDS, STEPS)
    assert list(whole.rewards) == ["redness", "brightness"] and whole.prompts == tuple(PROMPTS)


def test_more_seeds_begin_with_the_same_ones(pipe, whole):
    (answer,) = Recorder(pipe, REQUEST, ARGUMENTS).answer([0], [Block(PROMPTS[0], 0, 0, 2)])
    np.testing.assert_allclose(answer["rewards"]["redness"], whole.of("redness")[0, :2], atol=1e-4)


def test_what_is_recorded_is_not_drawn_again(folder, whole):
    with pytest.raises(KeyboardInterrupt):
        folder(fails_at=3)
    path, calls = folder()
    assert [(block.place, block.first) for block in calls] == [(1, 0), (1, 3)]
    found = RewardRecords.load(path)
    np.testing.assert_array_equal(found.of("redness"), whole.of("redness"))
    assert folder() == (path, [])


def test_killed_ten_times(folder):
    """Blocks are drawn once each; a kill comes at the first or second that a run begins."""
    request = replace(REQUEST, num_seeds=24, batch_size=2)
    random, begun, kills = np.random.default_rng(0), 0, 0
    while kills < 10:
        at = int(random.integers(1, 3))
        with pytest.raises(KeyboardInterrupt):
            folder("killed", request=request, fails_at=at)
        begun, kills = begun + at, kills + 1
    path, calls = folder("killed", request=request)
    assert begun + len(calls) == 2 * 12 + 10, "a kill costs the block that was begun"
    expected, _ = folder("at once", request=request)
    for name in ("redness", "brightness"):
        np.testing.assert_array_equal(RewardRecords.load(path).of(name), RewardRecords.load(expected).of(name))


def test_two_runs_at_once_in_one_folder(folder, tmp_path):
    with hold_folder(tmp_path / "held"), pytest.raises(FolderInUseError, match="is in use by process"):
        folder("held")
    assert len(folder("held")[1]) == 4


def test_processes_share_the_work(folder, whole):
    path, calls = folder("shared", shard=(0, 2))
    assert path is None and len(calls) == 2
    path, calls = folder("shared", shard=(1, 2))
    assert len(calls) == 2
    np.testing.assert_array_equal(RewardRecords.load(path).of("brightness"), whole.of("brightness"))


def test_a_folder_of_other_settings_is_refused(folder):
    folder()
    with pytest.raises(ValueError, match="seed 0 -> 1"):
        folder(request=RecordRequest(rewards=("redness",), num_seeds=SEEDS, seed=1))


def test_a_reward_that_compares_images_is_refused(rewards):
    class Compares(CallableReward):
        compares_images = True

    with pytest.raises(ValueError, match="compares the images of a call"):
        EachReward({"compares": Compares(brightness, "compares"), **rewards})


def test_a_reward_that_spoils_its_images_spoils_no_other(rewards):
    def spoils(images, prompts):
        return images.zero_().mean(dim=(1, 2, 3))

    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    _, parts = EachReward({"spoils": CallableReward(spoils, "spoils"), **rewards}).score_with_parts(images, "a star")
    torch.testing.assert_close(parts["brightness"], images.mean(dim=(1, 2, 3)))
    assert images.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": ()}, "at least one reward"),
        ({"rewards": ("a", "b", "a")}, "'a' is named twice"),
        ({"num_seeds": 0}, "num_seeds should be at least 1"),
        ({"num_inference_steps": 1}, "num_inference_steps should be at least 2"),
        ({"eta": 2.0}, "eta should be in"),
    ],
)
def test_requests_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        RecordRequest(**options)


def test_size_and_cost_are_said_before():
    said = announced(PROMPTS, REQUEST, STEPS)
    assert "2 prompts x 5 seeds x 4 steps" in said
    assert "(40)" in said and "40 images to decode and to score by redness, brightness" in said
