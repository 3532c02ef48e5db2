"""The recommended search: what is chosen in which situation, and that a call follows it."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import make_search
from fk_reward.benchmarks.geneval.runs import plan_runs
from fk_reward.pipelines import SOLVERS, SteeredLoop
from fk_reward.planning import plan
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

LATE = "sde-dpmsolver++-20"


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
    assert make_search("recommended") == RECOMMENDED["one"]
    assert make_search("recommended", solver="sde-dpmsolver++-20") == RECOMMENDED["branching"]
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


@pytest.fixture
def pipe():
    made = FKSteeringPipeline(tiny.make_sd(), reward=brightness, search="recommended")
    made.set_progress_bar_config(disable=True)
    return made


CANDIDATES = [
    # of 6 steps: cuts after the third and the fourth, a branching after the fourth, a cut after the fifth
    (None, 12, [12, 7, 4], 12 * 3 + 7 * 1 + 4 * 2),
    (None, 6, [6, 4, 2], 6 * 3 + 4 * 1 + 2 * 2),
    (LATE, 12, [1, 12, 2], 1 * 4 + 12 * 1 + 2 * 1),
    (LATE, 6, [1, 6, 1], 1 * 4 + 6 * 1 + 1 * 1),
    (LATE, 1, [1, 1], 6),
]


@pytest.mark.parametrize(("solver", "number", "sizes", "cost"), CANDIDATES)
def test_so_many_particles_are_as_many_candidates_under_every_scheduler(pipe, solver, number, sizes, cost):
    pipe.solver = solver
    trace = pipe("a dog", num_particles=number, num_inference_steps=6).trace
    assert [step.num_particles for step in trace.steps] == sizes
    assert trace.cost.sample_steps == cost <= number * 6, "no more than as many whole images"
    assert trace.notes[0] == f"Recommended chose {Recommended(num_particles=number).for_call(1, pipe.scheduler)}."
    assert f"{'num_branches' if solver else 'num_particles'}={number}, " in trace.notes[0]


@pytest.mark.parametrize(("solver", "keep"), [(None, (4, 2)), (LATE, (1,))])
def test_call_plan_and_benchmarks_have_the_same_search(pipe, solver, keep):
    pipe.solver = solver
    noted = pipe("a dog", num_particles=6, num_inference_steps=6).trace.notes[0]
    planned = plan("shapes-sd", reward="shapes-verifier", search="recommended", solver=solver, steps=6, num_particles=6)
    drawn = make_search("recommended", solver=solver, num_particles=6)
    assert noted == f"Recommended chose {planned.search}."
    assert planned.search == drawn == Recommended(num_particles=6).for_call(1, solver and SOLVERS[solver])
    assert drawn.keep == keep
    # a budget in place of the number of candidates, and a field of the chosen search beside it
    wide = {"search": "recommended", "at": (0.8,) if solver else (0.4, 0.8)}
    within = plan("shapes-sd", reward="shapes-verifier", budget=60, solver=solver, steps=6, **wide)
    assert within.search == pipe.search_within(60, **wide, num_inference_steps=6)
    assert within.search.at[-1] == 0.8
    assert pipe("a dog", budget=60, num_inference_steps=6, **wide).trace.notes[0].endswith(f"chose {within.search}.")


@pytest.mark.parametrize(
    ("situation", "num_images", "sizes"),
    [("several", 3, (9, (6,))), ("branching", 1, (1, (2,))), ("constraint", 1, (9, None))],
)
def test_candidates_of_other_situations(situation, num_images, sizes):
    config = Recommended(situation=situation, num_particles=9).for_call(num_images)
    assert (config.num_particles, getattr(config, "keep", None)) == sizes
    assert config.population(1).max_particles == 9


PRUNES = (
    r"search='recommended' chose Pruning, as one image is wanted under \w+\. .* search='recommended-one' is this one"
)
BRANCHES = (
    r"search='recommended' chose TreeSearch, as one image is wanted under DPMSolverMultistepScheduler with "
    r"sde-dpmsolver\+\+ on Karras levels.* search='recommended-branching' is this one, 'recommended-one' \(Pruning\)"
)


@pytest.mark.parametrize(
    ("solver", "settings", "error", "message"),
    [
        (LATE, {"keep": (3, 2)}, ValueError, f"keep and at should have one number for each cut.* {BRANCHES}"),
        (None, {"keep": (3,)}, ValueError, f"keep and at should have one number for each cut.* {PRUNES}"),
        (
            LATE,
            {"num_particles": 6, "keep": (8,)},
            ValueError,
            f"keep should descend from num_particles = 6.*{BRANCHES}",
        ),
        (None, {"num_branches": 6}, TypeError, f"'num_branches' is .* {PRUNES}"),
        (LATE, {"potential": "max"}, TypeError, f"'potential' is .* {BRANCHES}"),
    ],
)
def test_what_the_chosen_search_does_not_take_is_refused_with_the_choice(pipe, solver, settings, error, message):
    pipe.solver = solver
    with pytest.raises(error, match=message):
        pipe("a dog", num_inference_steps=6, **settings)
    with pytest.raises(error, match=message):
        plan("shapes-sd", reward="shapes-verifier", search="recommended", solver=solver, steps=6, **settings)


def test_a_loop_and_a_search_of_someone_else_say_their_choice(pipe):
    with pytest.raises(
        TypeError, match="'num_branches' is no setting of Pruning.* under a scheduler that is not known"
    ):
        SteeredLoop("recommended", brightness, ["a"], lambda samples: samples, num_branches=3)

    class Mine(Recommended):
        explain = None

    with pytest.raises(ValueError, match=r"got 1 in keep and 2 in at\. Mine chose Pruning for this call\."):
        pipe("a dog", search=Mine(), keep=(3,), num_inference_steps=6)


def test_what_is_named_is_not_explained(pipe):
    with pytest.raises(ValueError, match=r"got 1 in keep and 2 in at\.$"):
        pipe("a dog", search="recommended-one", keep=(3,), num_inference_steps=6)


def test_two_numbers_of_candidates_are_one_too_many(pipe):
    message = "num_particles=6 says how many candidates there are, and num_branches=3 of TreeSearch says it, too"
    late = {"num_branches": 3, "num_particles": 6}
    with pytest.raises(ValueError, match=message):
        plan("shapes-sd", reward="shapes-verifier", search="recommended", solver=LATE, **late)
    twice = "budget=60 says what num_particles Recommended has"
    with pytest.raises(ValueError, match=twice):
        pipe("a dog", budget=60, num_particles=6, num_inference_steps=6)
    with pytest.raises(ValueError, match=twice):
        pipe.search_within(60, num_particles=6, num_inference_steps=6)
    with pytest.raises(ValueError, match=twice):
        plan("shapes-sd", reward="shapes-verifier", search="recommended", budget=60, num_particles=6)
    with pytest.raises(ValueError, match=twice):
        plan_runs("shapes", methods=("recommended",), typed={"rewards": ("r",), "num_particles": (6,), "budget": 60})
    with pytest.raises(ValueError, match="num_particles should be at least 1, got 0"):
        Recommended(num_particles=0)
    pipe.solver = LATE
    with pytest.raises(ValueError, match=message):
        pipe("a dog", num_inference_steps=6, **late)


def test_runs_of_several_sizes_have_names_of_their_own():
    typed = {"rewards": ("r",), "num_particles": (4, 8), "solver": LATE}
    runs = plan_runs("shapes", methods=("recommended", "tree"), typed=typed)
    assert [run.name for run in runs] == ["recommended-4-r", "tree-4-r", "recommended-8-r", "tree-8-r"]
    assert [run.search.num_branches for run in runs if run.method == "recommended"] == [4, 8]
