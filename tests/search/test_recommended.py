"""The recommended search: what is chosen in which situation, and that a call follows it."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import make_search
from fk_reward.pipelines import SOLVERS
from fk_reward.search import (
    RECOMMENDED,
    ChosenByCall,
    Pruning,
    Recommended,
    TreeSearch,
    fit_budget,
    load_search,
    sample_steps,
)
from fk_reward.search.base import forecast
from tests import tiny


@pytest.mark.parametrize(
    ("situation", "num_images", "chosen"),
    [
        ("auto", 1, "one"),
        ("auto", 2, "several"),
        ("branching", 1, "branching"),
        ("one", 3, "one"),
        ("several", 1, "several"),
        ("constraint", 1, "constraint"),
        ("constraint", 4, "constraint"),
    ],
)
def test_situations(situation, num_images, chosen):
    assert Recommended(situation=situation).for_call(num_images) == RECOMMENDED[chosen]


@pytest.mark.parametrize(
    ("scheduler", "chosen"),
    [
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True), "branching"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "one"),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), "one"),
        (DDIMScheduler(), "one"),
        (None, "one"),
        (SOLVERS["sde-dpmsolver++-20"], "branching"),
        (SOLVERS["ddim-50"], "one"),
    ],
)
def test_where_early_steps_decide_little_one_image_is_that_of_a_tree(scheduler, chosen):
    assert Recommended().for_call(1, scheduler) == RECOMMENDED[chosen]
    assert Recommended().for_call(2, scheduler) == RECOMMENDED["several"]
    assert Recommended(situation="constraint").for_call(1, scheduler) == RECOMMENDED["constraint"]


@pytest.mark.parametrize("name", RECOMMENDED)
def test_presets_are_those_of_the_table(name):
    assert load_search(f"recommended-{name}") == RECOMMENDED[name]
    assert load_search(f"recommended-{name}", num_particles=16).num_particles == 16


@pytest.mark.parametrize("situation", RECOMMENDED)
@pytest.mark.parametrize("num_images", [1, 5, 30])
def test_enough_images_are_finished(situation, num_images):
    finished = forecast(Recommended(situation=situation).for_call(num_images), 20).finished
    assert finished >= num_images * (2 if situation == "several" else 1)


def test_a_budget_and_a_benchmark_take_the_search_for_one_image():
    fitted = fit_budget(Recommended(), 200, 20)
    assert type(fitted) is type(RECOMMENDED["one"])
    assert sample_steps(fitted, 20) <= 200
    assert make_search("recommended", num_particles=4) == RECOMMENDED["one"]
    assert make_search("recommended", solver="sde-dpmsolver++-20", num_particles=4) == RECOMMENDED["branching"]
    assert isinstance(Recommended(), ChosenByCall)
    assert not isinstance(Pruning(), ChosenByCall)


def test_an_unknown_situation():
    with pytest.raises(ValueError, match="situation should be one of .*got 'many'"):
        Recommended(situation="many")


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def small(monkeypatch):
    table = {
        "one": Pruning(num_particles=4, keep=(2,), at=(0.5,)),
        "branching": TreeSearch(num_branches=3, keep=(2,), branch_at=0.25, at=(0.5,)),
        "several": Pruning(num_particles=6, keep=(4,), at=(0.5,), selection="diverse"),
        "constraint": replace(RECOMMENDED["constraint"], num_particles=3, reward_scale=10.0),
    }
    monkeypatch.setattr("fk_reward.search.recommended.RECOMMENDED", table)
    return table


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [({}, "one"), ({"num_images_per_prompt": 2}, "several"), ({"situation": "constraint"}, "constraint")],
)
def test_a_call_is_that_of_the_chosen_search(arguments, chosen, monkeypatch):
    table, pipe = small(monkeypatch), FKSteeringPipeline(tiny.make_sd(), reward=brightness)

    def call(**options):
        return pipe("a dog", num_inference_steps=4, generator=torch.Generator().manual_seed(0), **options)

    out = call(search="recommended", **arguments)
    number = {name: value for name, value in arguments.items() if name != "situation"}
    plain = call(search=table[chosen], **number)
    assert torch.equal(out.rewards, plain.rewards)
    assert out.trace.notes[0] == f"Recommended chose {table[chosen]}."
    assert out.trace.search == plain.trace.search


def test_the_solver_of_a_pipeline_is_seen(monkeypatch):
    table = small(monkeypatch)
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=brightness, search="recommended", solver="sde-dpmsolver++-20")
    out = pipe("a dog", num_inference_steps=6, generator=torch.Generator().manual_seed(0))
    assert out.trace.notes[0] == f"Recommended chose {table['branching']}."
    assert pipe.search_within(60, num_inference_steps=6).num_branches > 3
    pipe.solver = "ddim-50"
    assert pipe("a dog", num_inference_steps=4).trace.search == "pruning"


def test_fields_of_the_chosen_search_and_a_budget(monkeypatch):
    small(monkeypatch)
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=brightness, search="recommended")
    out = pipe("a dog", num_particles=3, num_inference_steps=4)
    assert [step.num_particles for step in out.trace.steps] == [3, 2]
    paid = pipe("a dog", budget=30, num_inference_steps=4, num_images_per_prompt=2)
    assert paid.trace.cost.sample_steps <= 30
    assert "selection='diverse'" in paid.trace.notes[0]
    with pytest.raises(TypeError, match="situations"):
        pipe("a dog", situations="one", num_inference_steps=4)
