"""Best of N: the wrapped pipeline's own images, ranked."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, IPNDMScheduler, PNDMScheduler

from fk_reward import FKSteeringPipeline, steer
from fk_reward.search import BestOfN
from tests import tiny

PROMPT, STEPS = "a red circle", 4


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


def searched(pipe, reward=redness):
    wrapped = FKSteeringPipeline(pipe, reward=reward)
    wrapped.set_progress_bar_config(disable=True)
    return wrapped


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(DDIMScheduler, {}), (EulerDiscreteScheduler, {}), (PNDMScheduler, {"skip_prk_steps": True})],
    ids=["ddim", "euler", "pndm"],
)
@pytest.mark.parametrize("arguments", [{}, {"eta": 1.0}], ids=["own-eta", "eta-1"])
def test_equals_plain_images_of_the_stock_pipeline_bit_for_bit(kind, settings, arguments):
    pipe = tiny.make_sd()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    shared = {"num_inference_steps": STEPS, "output_type": "pt", **arguments}
    stock = pipe(PROMPT, num_images_per_prompt=3, generator=torch.Generator().manual_seed(3), **shared).images
    out = searched(pipe)(
        PROMPT,
        search="best-of-n",
        num_particles=3,
        num_images_per_prompt=3,
        generator=torch.Generator().manual_seed(3),
        **shared,
    )
    assert torch.equal(out.images, stock[out.trace.selected[0]])
    torch.testing.assert_close(out.rewards[0], redness(stock, None).sort(descending=True).values)
    assert out.trace.cost.sample_steps == 3 * (STEPS + (kind is PNDMScheduler))
    assert (out.trace.cost.decodes, out.trace.cost.reward_calls) == (3, 3)


def test_the_trace_has_no_weights_and_says_so():
    out = searched(tiny.make_sd())(PROMPT, search=BestOfN(num_particles=2), num_inference_steps=2)
    assert out.trace.log_evidence is None
    assert out.trace.reward_scale is None
    assert out.trace.search == "best-of-n"
    assert out.trace.config == {"num_particles": 2, "abstain": False, "selection": "best", "diversity_weight": 1.0}
    assert out.weights.tolist() == [[0.5]]
    assert type(out.trace).from_json(out.trace.to_json()).log_evidence is None


def test_an_unknown_scheduler_runs():
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(4)
    population, sample = BestOfN(num_particles=2).population(), torch.randn(2, 1, 2, 2)
    with steer(scheduler, population, lambda x0: x0.sum()) as records:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample
    assert (records, records.sample_steps) == ([], 8)
    population.finish(torch.tensor([1.0, 2.0]))
    assert population.select(1).tolist() == [[1]]


@pytest.mark.parametrize("abstain", [False, True])
def test_all_forbidden(abstain):
    def forbids(images, prompts):
        return torch.full((len(images),), -torch.inf)

    call = {"search": BestOfN(num_particles=2, abstain=abstain), "num_inference_steps": 2, "output_type": "pt"}
    pipe = searched(tiny.make_sd(), forbids)
    if not abstain:
        with pytest.raises(ValueError, match=r"All 2 finished images of prompt 0 have a reward of -inf"):
            pipe(PROMPT, **call)
        return
    out = pipe(PROMPT, **call)
    assert out.abstained.tolist() == [True]
    assert out.images.abs().max() == 0
    assert any("none is returned" in note for note in out.trace.notes)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "num_particles should be at least 1"),
        ({"num_particles": 2.0}, TypeError, "num_particles should be an int"),
        ({"abstain": 1}, TypeError, "abstain should be True or False"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        BestOfN(**settings)


def test_more_images_than_particles_are_refused():
    with pytest.raises(ValueError, match=r"\[1, num_particles = 2\], got 3"):
        searched(tiny.make_sd())(PROMPT, search="best-of-n", num_particles=2, num_images_per_prompt=3)
