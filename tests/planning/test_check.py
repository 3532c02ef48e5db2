"""The prediction of a whole call against real tensors on the CPU, and against a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from fk_reward import FKSteeringPipeline
from fk_reward.planning import plan
from fk_reward.planning.check import Check, check_plan, peak_memory
from fk_reward.planning.costs import PROMPT
from fk_reward.planning.meta_device import LiveBytes

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_fifteen_per_cent():
    assert Check(predicted=114, measured=100, seconds=1.0).is_right
    assert not Check(predicted=84, measured=100, seconds=1.0).is_right


def test_without_a_gpu_nothing_is_checked(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="GPU"):
        check_plan(plan("shapes-sd", reward="shapes-verifier", num_particles=1))


@pytest.mark.parametrize(("memory", "tolerance"), [("1GB", 0.03), (825_000_000, 0.08)])
def test_a_whole_call_on_real_tensors_holds_what_the_plan_says(memory, tolerance):
    made = plan("shapes-sd", reward="shapes-clipscore", dtype="float32", guidance_scale=3.0, memory=memory)
    batch_sizes = made.settings.keywords(4)
    assert made.fits
    assert bool(batch_sizes) == (memory != "1GB")
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-clipscore")
    pipe.set_progress_bar_config(disable=True)
    with LiveBytes() as tracker:
        out = pipe(PROMPT, num_particles=4, num_inference_steps=5, guidance_scale=3.0, **batch_sizes)
    thumbnails = sum(step.thumbnails.nbytes for step in out.trace.steps if not step.final)  # never on the GPU
    measured = tracker.peak - thumbnails
    above = made.peak - sum(made.weights.values())
    assert above == pytest.approx(measured, rel=tolerance)
    assert above != pytest.approx(measured * 5 / 4, rel=tolerance), "one particle more is noticed"


@NEEDS_GPU
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "reward", "options"),
    [
        ("sd-2.1-base", "clipscore", {"num_particles": 4}),
        ("sdxl", "clipscore", {"num_particles": 2}),
        ("sdxl", "llava-reward-alignment", {"num_particles": 4}),
        ("sd-2.1-base", "clipscore", {"num_particles": 8, "final_particles": 2}),
        ("sdxl", "clipscore", {"num_particles": 8, "final_particles": 2, "preview": "taesdxl"}),
        ("sdxl", "clipscore", {"num_particles": 4, "preview": "vae/2", "solver": "sde-dpmsolver++-20"}),
    ],
)
def test_the_peak_is_as_predicted(model, reward, options):
    made = plan(model, reward=reward, **options)
    if made.needed > torch.cuda.mem_get_info()[0]:
        pytest.skip(f"needs {made.needed / 1e9:.0f} GB")
    assert check_plan(made).is_right


@NEEDS_GPU
@pytest.mark.slow
def test_half_of_the_prediction_is_noticed():
    made = check_plan(plan("sd-2.1-base", reward="clipscore", num_particles=2))
    assert not Check(predicted=made.predicted // 2, measured=made.measured, seconds=made.seconds).is_right


def test_peak_memory_is_that_of_the_run_alone(monkeypatch):
    peak = 900
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def reset(device):
        nonlocal peak
        peak = 100

    def run():
        nonlocal peak
        peak = max(peak, 300)

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    assert peak_memory(run, torch.device("cuda")) == 300
    assert peak_memory(run, torch.device("cpu")) is None
