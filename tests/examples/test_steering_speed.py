"""The benchmark of steering's speed on tiny models: what is measured, not how fast it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
import torch

from examples.benchmarks import steering_speed
from examples.benchmarks.steering_speed import (
    STEERED,
    STOCK,
    VARIANTS,
    SteeringSpeedSettings,
    Variant,
    measure,
    summarize,
    variants_for,
)
from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import acceleration
from fk_reward.planning import full_size_pipelines
from fk_reward.planning.full_size_rewards import random_reward
from tests.examples.scripts import invoke

SETTINGS = SteeringSpeedSettings(model="tiny", num_particles=2, steps=3, num_repetitions=2)
ABSENT = ("steered, 4 crops", "steered, reward on another GPU, decoded one at a time")
"""Variants that a tiny pipeline on a CPU does not have."""


@pytest.fixture
def pipe(tiny_sd):
    wrapped = FKSteeringPipeline(tiny_sd(), reward="shapes-verifier")
    wrapped.set_progress_bar_config(disable=True)
    return wrapped


@pytest.fixture
def few_steps(monkeypatch):
    """A step more than the others for the variant with steps of its own; `test_each_variant...` has all of them."""
    variants = [
        dataclasses.replace(v, call={**v.call, "num_inference_steps": 4}) if "num_inference_steps" in v.call else v
        for v in VARIANTS
    ]
    assert variants != list(VARIANTS)
    monkeypatch.setattr(steering_speed, "VARIANTS", tuple(variants))


@pytest.mark.usefixtures("few_steps")
def test_all_variants_are_timed_in_each_round_and_leave_the_pipeline_as_it_was(pipe):
    reward, unet, preview, scheduler = pipe.reward, pipe.unet, pipe.preview, pipe.scheduler
    variants = variants_for(pipe, SETTINGS)
    seconds, peaks = measure(pipe, variants, SETTINGS)
    assert list(seconds) == [v.name for v in VARIANTS if v.name not in ABSENT]
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
    assert set(peaks.values()) == {None}, "not measured on a CPU"
    assert (pipe.reward, pipe.unet, pipe.preview, pipe.scheduler) == (reward, unet, preview, scheduler)
    assert pipe.solver is None
    assert all(weight.is_contiguous() for weight in pipe.unet.parameters())


def test_each_variant_does_what_its_name_says(pipe, monkeypatch):
    scored, decoded = [], []
    monkeypatch.setattr(pipe.reward, "score", lambda images, prompts: scored.append(1) or images.mean(dim=(1, 2, 3)))
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs))
    counts = {}
    for variant in variants_for(pipe, SETTINGS):
        scored.clear(), decoded.clear()
        with variant.set_up(pipe):
            steering_speed._run(pipe, variant, SETTINGS)()
        counts[variant.name] = (len(scored), len(decoded))
    scorings, decodings = counts["steered"]
    assert scorings == decodings > 1
    assert counts["stock"] == (0, 1)
    assert counts["steered, free reward and decoder"] == (0, 1)
    assert counts["steered, free reward"] == (0, decodings)
    assert counts["steered, channels-last"] == (scorings, decodings)
    assert counts["steered, preview vae/2"] == (scorings, decodings)
    assert counts["steered, one particle at a time"] == (scorings, decodings)
    assert counts["steered, decoded and scored one at a time"] == (2 * scorings, 2 * decodings)


def test_crops_are_an_option_of_rewards_that_have_them(pipe):
    crops = next(variant for variant in VARIANTS if variant.name == "steered, 4 crops")
    assert not crops.available(pipe)
    pipe.reward = random_reward("phi3_v", num_crops=16, dimensions=("alignment",))
    assert crops.available(pipe)
    with crops.set_up(pipe):
        assert pipe.reward.model.backbone.options == {"num_crops": 4}
    assert pipe.reward.model.backbone.options == {"num_crops": 16}


def test_a_new_option_is_one_more_row(pipe):
    guidance = Variant("steered, no guidance", call={"guidance_scale": 1.0})
    seconds, _ = measure(pipe, [STOCK, STEERED, guidance], SETTINGS)
    assert list(seconds) == ["stock", "steered", "steered, no guidance"]


def test_compiled_and_channels_last_are_taken_back(pipe, monkeypatch):
    monkeypatch.setattr(acceleration, "check_compiler", lambda compilation, devices: None)
    with steering_speed.COMPILED.set_up(pipe):
        compiled = [type(m).__name__ for m in pipe.unet.modules() if m._compiled_call_impl is not None]
        assert set(compiled) == {"BasicTransformerBlock"}
    assert all(module._compiled_call_impl is None for module in pipe.unet.modules())
    weight = pipe.unet.mid_block.resnets[0].conv1.weight
    with next(v for v in VARIANTS if v.name == "steered, channels-last").set_up(pipe):
        assert not weight.is_contiguous()
    assert weight.is_contiguous()


def test_without_a_compiler_the_row_says_why(pipe, monkeypatch, tmp_path):
    def refuse(compilation, devices):
        raise RuntimeError("torch.compile does not work here: no g++\nInstall it.")

    monkeypatch.setattr(acceleration, "check_compiler", refuse)
    monkeypatch.setattr(steering_speed, "VARIANTS", (STOCK,))
    steering_speed._report(dataclasses.replace(SETTINGS, compile=True), pipe, tmp_path)
    rows = json.loads((tmp_path / "steering_speed.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["stock", "steered, compiled"]
    assert rows[1]["note"] == "torch.compile does not work here: no g++"


def test_rows_have_quartiles_of_ratios_within_a_round():
    seconds = {"stock": [1.0, 2.0, 4.0], "steered": [2.0, 6.0, 4.0]}
    row = summarize(seconds, {"steered": 3 * 10**9}, names=["steered"], num_particles=2)[0]
    assert (row["to_stock_low"], row["to_stock"], row["to_stock_high"]) == (1.5, 2.0, 2.5)
    assert (row["to_steered"], row["seconds"], row["peak_gb"]) == (1.0, 2.0, 3.0)


def test_a_variant_that_does_not_fit_is_said_and_the_rest_goes_on(pipe):
    @contextlib.contextmanager
    def too_large(pipe):
        raise torch.OutOfMemoryError
        yield

    seconds, peaks = measure(pipe, [STOCK, Variant("huge", set_up=too_large)], SETTINGS)
    rows = summarize(seconds, peaks, names=["stock", "huge"], num_particles=2)
    assert rows[1] == {"variant": "huge", "note": "out of memory"}
    assert rows[0]["to_stock"] == 1.0
    assert "to_steered" not in rows[0]


def run(*arguments, code=0):
    return invoke(steering_speed.main, *arguments, code=code)


@pytest.mark.long
@pytest.mark.usefixtures("few_steps")
def test_command(tmp_path):
    options = ["--steps", 2, "--num-particles", 2, "--num-repetitions", 2, "--device", "cpu", "--out", tmp_path]
    printed = run(*options)
    content = json.loads((tmp_path / "steering_speed.json").read_text())
    assert content["settings"]["dtype"] == "float32"
    assert [row["variant"] for row in content["rows"]][:2] == ["stock", "steered, free reward and decoder"]
    assert content["rows"][0]["to_stock"] == 1.0
    assert "| steered |" in (tmp_path / "steering_speed.md").read_text()
    assert "/ stock" in printed


def test_random_weights_need_no_files(monkeypatch, tiny_sd):
    class Tiny:
        def make(self, *, device, dtype, seed):
            return tiny_sd().to(device, dtype)

    monkeypatch.setitem(full_size_pipelines.FULL_SIZE_PIPELINES, "sdxl", Tiny())
    settings = SteeringSpeedSettings(model="sdxl", reward="shapes-verifier", random_weights=True)
    assert steering_speed.make_pipeline(settings).reward.card.name == "shapes-verifier"


@pytest.mark.parametrize(
    "options",
    [["--random-weights"], ["--random-weights", "--model", "sdxl", "--reward", "x"], ["--dtype", "int8"]],
)
def test_mistakes_are_told(options, tmp_path, monkeypatch):
    monkeypatch.setitem(full_size_pipelines.FULL_SIZE_PIPELINES, "sdxl", FullyMade())
    run(*options, "--out", tmp_path, code=2)


class FullyMade:
    """Stands for a model of billions of parameters, which is not made for a mistake."""

    def make(self, **_):
        return None
