"""`fk-reward cache evolve`, `apply` and `show`."""

from __future__ import annotations

import json

import pytest
import torch

from fk_reward.benchmarks.cache_comparison import UNCACHED, CachedImages
from fk_reward.benchmarks.cache_settings import CachedDrawing
from fk_reward.pipelines import CacheSchedule, cache_components
from fk_reward.search import FKSteeringConfig
from tests.pipelines.test_cache_schedule import FLUX

QUICK = ("--num-inference-steps", 4, "--num-images", 1, "--reward", "shapes-clipscore", "--device", "cpu")
PROMPTS = ("a photo of a red circle", "a photo of a blue square")


@pytest.fixture(scope="module")
def drawn():
    drawing = CachedDrawing(num_inference_steps=4, num_images=2, reward="shapes-clipscore", eta=1.0, batch_prompts=1)
    return CachedImages.load(drawing, device="cpu", dtype=torch.float32)


@pytest.fixture
def schedule(drawn, tmp_path):
    made = CacheSchedule.every(cache_components(drawn.pipe.unet), num_steps=4, interval=2)
    return made.save(tmp_path / "every-2.json")


def test_show(run, tmp_path):
    path = CacheSchedule.from_dict(FLUX).save(tmp_path / "flux.json")
    lines = run("cache", "show", path).stdout.splitlines()
    assert lines[0] == "flux: 1 steps, 6 components, 66.7% of them computed"
    assert lines[1] == "0 full_attn               █" and lines[5].split() == ["single_0", "single_proj_mlp", "·"]


def test_apply_compares_from_the_same_noise(run, schedule, tmp_path):
    whole = CacheSchedule.load(schedule)
    full = whole.replace(steps=((True,) * len(whole.components),) * 4, name="full").save(tmp_path / "full.json")
    result = run(
        "cache", "apply", full, schedule, "--suite", "shapes", "--num-prompts", 3, *QUICK, "--out", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    methods = json.loads((tmp_path / "o" / "comparison.json").read_text())["methods"]
    assert list(methods) == [UNCACHED, "full", "every-2"]
    assert methods["full"]["share"] == 1.0 and methods["full"]["reward_gain"]["estimate"] == 0.0
    assert 0.3 < methods["every-2"]["share"] < 0.9
    assert methods["every-2"]["reward_gain"]["estimate"] != 0.0 and "accuracy" in methods["every-2"]
    images = [
        (tmp_path / "o" / name / "000-00.png").read_bytes() for name in ("everything-computed", "full", "every-2")
    ]
    assert images[0] == images[1] != images[2]


def test_evolve_goes_on_and_refuses_other_settings(run, refused, tmp_path):
    pytest.importorskip("pymoo")
    out, sizes = tmp_path / "out", ("--population-size", 5)
    command = ("cache", "evolve", *PROMPTS, *QUICK, "--out", out)
    assert run(*command, *sizes, "--num-generations", 1).exit_code == 0
    before = (out / "evaluations.jsonl").read_text()
    result = run(*command, *sizes, "--num-generations", 2)
    assert result.exit_code == 0 and "every-2" in result.stdout
    assert (out / "evaluations.jsonl").read_text().startswith(before)
    rows = json.loads((out / "front.json").read_text())
    written = sorted((out / "front").glob("*.json")) + sorted((out / "every-k").glob("*.json"))
    assert len(rows) == len(written)
    assert CacheSchedule.load(written[0]).metrics["share"] == rows[0]["share"]
    assert "another population_size: 5, now 6" in refused(*command, "--population-size", 6)


def test_refusals_before_a_model_is_loaded(refused, tmp_path):
    assert "Give prompts" in refused("cache", "apply", "nothing.json", "--out", tmp_path / "out")
    assert "num_images should be at least 1" in refused(
        "cache", "apply", "x.json", "--prompt", "a", "--num-images", 0, "--out", tmp_path / "out"
    )
    assert "nothing.json" in refused("cache", "show", tmp_path / "nothing.json")


def test_a_prompt_draws_the_same_in_any_company_and_is_searched(drawn):
    both = drawn.draw(None, PROMPTS)[1]
    assert drawn.draw(None, PROMPTS[:1])[1][0] == pytest.approx(both[0], abs=1e-5)
    images, rewards = drawn.draw(None, PROMPTS[:1], search=FKSteeringConfig(num_particles=4))
    assert len(images[0]) == len(rewards[0]) == 2
    assert drawn.mean_reward(None, PROMPTS) == pytest.approx(sum(map(sum, both)) / 4, abs=1e-6)


def test_steps_are_those_of_the_solver_where_one_is_named():
    steps = [CachedDrawing(**given).typed_steps for given in ({}, {"solver": "lcm-4"}, {"num_inference_steps": 8})]
    assert steps == [20, None, 8]
