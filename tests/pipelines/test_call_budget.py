"""`budget=`: what a call really takes is what it was given, or less."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from fk_reward import FKSteeringPipeline, SteeringTrace
from fk_reward.pipelines.call_budget import num_inference_steps, scheduler_steps
from fk_reward.rewards import Reward, RewardCard
from fk_reward.search import SEARCHES, BestOfN, DraftRefine, Pruning, load_search
from tests import tiny

PROMPTS, STEPS = ["a red circle", "two blue squares"], 5


class Redness(Reward):
    """Some searches follow its gradient."""

    card = RewardCard(name="redness", summary="red", typical_range=(0, 1), differentiable=True)

    def score(self, images, prompts):
        return images[:, 0].float().mean(dim=(1, 2))


redness = Redness()


@pytest.fixture(scope="module")
def pipe():
    made = FKSteeringPipeline(tiny.make_sd(), reward=redness)
    made.set_progress_bar_config(disable=True)
    return made


def call(pipe, prompt=PROMPTS, **options):
    return pipe(prompt, **{"num_inference_steps": STEPS, "output_type": "latent", **options})


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_takes_its_budget_and_no_more(pipe, name):
    prompts = PROMPTS[:1] if getattr(load_search(name), "one_prompt", False) else PROMPTS
    # the card of this reward states no spread
    scale = {"reward_scale": 10.0} if name in ("restart", "svdd", "particle-metropolis") else {}
    trace = call(pipe, prompts, search=name, budget=33, **scale, generator=torch.Generator().manual_seed(0)).trace
    assert trace.budget == 33
    assert 16 < trace.cost.sample_steps / len(prompts) <= 33
    assert SteeringTrace.from_json(trace.to_json()).budget == 33


@pytest.mark.parametrize(
    ("kind", "options", "length"),
    [
        (DDIMScheduler, {}, STEPS),
        (DPMSolverMultistepScheduler, {}, STEPS),
        (EulerDiscreteScheduler, {}, STEPS),
        (HeunDiscreteScheduler, {}, 2 * STEPS - 1),
        (PNDMScheduler, {"skip_prk_steps": True}, STEPS + 1),
    ],
)
@pytest.mark.parametrize("search", [BestOfN(), DraftRefine(draft_steps=2)])
def test_steps_are_those_that_the_scheduler_makes(kind, options, length, search):
    stock = tiny.make_sd()
    stock.scheduler = kind.from_config(stock.scheduler.config, **options)
    stock.set_progress_bar_config(disable=True)
    pipe = FKSteeringPipeline(stock, reward=redness)
    assert scheduler_steps(stock, STEPS, {}) == length
    trace = call(pipe, search=search, budget=40).trace
    unit = length if isinstance(search, BestOfN) else 2 * length
    assert 40 - unit < trace.cost.sample_steps / len(PROMPTS) <= 40
    assert trace.notes == () or "took" not in trace.notes[-1]


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
def test_image_to_image_counts_the_steps_that_are_left(strength):
    stock = tiny.make_sd()
    pipe = FKSteeringPipeline(StableDiffusionImg2ImgPipeline(**stock.components), reward=redness)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"image": Image.new("RGB", (32, 32)), "strength": strength, "search": "best-of-n"}
    trace = pipe(PROMPTS[0], budget=20, num_inference_steps=10, **arguments).trace
    assert trace.num_steps == int(10 * strength)
    assert 20 - 10 * strength <= trace.cost.sample_steps <= 20


def test_budgets_in_other_ways(pipe):
    """As a config, with a solver's steps, with the pipeline's default, and asked for before the call."""
    trace = call(pipe, search=Pruning(num_particles=4, keep=(2,), at=(0.4,)), budget=60).trace
    before = pipe.search_within(60, Pruning(num_particles=4, keep=(2,), at=(0.4,)), num_inference_steps=STEPS)
    assert trace.config["num_particles"] == before.num_particles == trace.steps[0].num_particles
    assert trace.config["keep"] == list(before.keep)
    assert num_inference_steps(pipe.pipe, {}) == 50
    assert num_inference_steps(pipe.pipe, {"timesteps": [3, 2, 1]}) == 3
    assert pipe.search_within(120, "best-of-n").num_particles == 2
    pipe.solver = "sde-dpmsolver++-20"
    try:
        assert pipe.search_within(120, "best-of-n").num_particles == 6
    finally:
        pipe.solver = None


def test_what_cannot_be_bought_is_refused(pipe):
    with pytest.raises(
        ValueError, match="budget=4 sample steps a prompt buys nothing: BestOfN needs at least 5, with 5"
    ):
        call(pipe, search="best-of-n", budget=4)
    with pytest.raises(ValueError, match="num_particles=4 says it, too"):
        call(pipe, search="best-of-n", budget=20, num_particles=4)
    with pytest.raises(ValueError, match="num_images_per_prompt should be in"):
        call(pipe, search="best-of-n", budget=10, num_images_per_prompt=3)


def test_one_image_is_no_search_and_the_trace_says_so(pipe, caplog):
    out = call(pipe, search="best-of-n", budget=9)
    assert out.trace.notes == ("budget=9 sample steps a prompt bought one image, of which nothing could be chosen.",)
    assert "bought one image" in caplog.text
    assert call(pipe, search=load_search("best-of-n", num_particles=2)).trace.budget is None


def test_previews_are_counted_apart(pipe):
    options = {"search": Pruning(num_particles=4, keep=(2,), at=(0.4,)), "output_type": "pt"}
    assert call(pipe, **options).trace.cost.previews == 0
    pipe.preview = "vae/2"
    try:
        cost = call(pipe, **options).trace.cost
    finally:
        pipe.preview = None
    assert (cost.previews, cost.decodes) == (4 * 2, 4 * 2 + 2 * 2)
    drafts = call(pipe, search=DraftRefine(num_particles=3, draft_steps=2, num_refined=1)).trace.cost
    assert (drafts.previews, drafts.decodes) == (0, (3 + 1) * 2)
