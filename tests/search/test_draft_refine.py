"""Drafts: the best starts of few steps are drawn again, and end as they would have ended alone."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fk_reward import FKSteeringPipeline
from fk_reward.search import BestOfN, DraftRefine
from fk_reward.search.base import forecast
from fk_reward.search.registry import settings_of
from tests import tiny

PROMPT, STEPS = "a red circle", 5
CONFIG = DraftRefine(num_particles=4, draft_steps=2, num_refined=2)
SCHEDULERS = {
    "ddim": (DDIMScheduler, {}),
    "ddim-eta-1": (DDIMScheduler, {"eta": 1.0}),
    "dpm-solver": (DPMSolverMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


def generators(number):
    return [torch.Generator().manual_seed(40 + index) for index in range(number)]


@pytest.fixture(scope="module")
def stock():
    return tiny.make_sd()


@pytest.fixture
def toy(monkeypatch):
    """A denoiser that treats each number alone, so that no row depends on the batch it is in."""
    pipe = tiny.make_sd()

    def forward(sample, timestep, *args, **kwargs):
        return (sample * 0.3 + 0.1 * sample * sample * sample.sign().clamp(min=-0.5),)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    return pipe


def wrap(pipe, name, **options):
    kind, arguments = SCHEDULERS[name]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **({"skip_prk_steps": True} if name == "pndm" else {}))
    pipe.set_progress_bar_config(disable=True)
    return FKSteeringPipeline(pipe, reward=redness, **options), {"num_inference_steps": STEPS, **arguments}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_all_kept_is_best_of_n_bit_for_bit(stock, name):
    pipe, shared = wrap(stock, name)
    shared |= {"num_images_per_prompt": 3, "output_type": "pt"}
    for source in (lambda: generators(1)[0], lambda: generators(3)):
        best = pipe(PROMPT, search=BestOfN(num_particles=3), generator=source(), **shared)
        search = DraftRefine(num_particles=3, draft_steps=2, num_refined=3)
        out = pipe(PROMPT, search=search, generator=source(), **shared)
        assert torch.equal(out.images, best.images)
        assert torch.equal(out.rewards, best.rewards)


def check_refined_equals_its_start_alone(pipe, shared, search, *, tolerance=0.0):
    out = pipe(PROMPT, search=search, num_images_per_prompt=2, generator=generators(4), output_type="latent", **shared)
    for latents, slot in zip(out.images, out.trace.selected[0].tolist(), strict=True):
        start = int(out.trace.lineage()[0, slot])
        alone = pipe.pipe(PROMPT, generator=generators(4)[start], output_type="latent", **shared).images[0]
        torch.testing.assert_close(latents, alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_refined_image_equals_its_start_alone_bit_for_bit(toy, name):
    check_refined_equals_its_start_alone(*wrap(toy, name), CONFIG)


@pytest.mark.parametrize("name", ["ddim-eta-1", "euler", "unipc"])
def test_a_refined_image_of_a_real_model_equals_its_start_alone(name):
    # In double precision: in single, a batch of another size rounds otherwise, and on some CPUs by more than that.
    double = tiny.make_sd().to(torch.float64)
    check_refined_equals_its_start_alone(*wrap(double, name), CONFIG, tolerance=1e-4)


@dataclass(frozen=True, kw_only=True)
class OtherStarts(DraftRefine):
    """A saboteur: the second pass draws from other starts than those that were good."""

    def run(self, rollout, *, num_groups, generators):
        def swapped(start=None, **arguments):
            return rollout(None if start is None else start.flip(0), **arguments)

        swapped.num_steps = rollout.num_steps
        return super().run(swapped, num_groups=num_groups, generators=generators)


def test_other_starts_in_the_second_pass_are_noticed(toy, stock):
    search = OtherStarts(num_particles=4, draft_steps=2, num_refined=2)
    for pipe, tolerance in ((toy, 0.0), (stock, 1e-4)):
        with pytest.raises(AssertionError):
            check_refined_equals_its_start_alone(*wrap(pipe, "ddim"), search, tolerance=tolerance)


def test_each_prompt_goes_on_with_its_own_best_drafts(stock):
    pipe, shared = wrap(stock, "euler")
    prompts = [PROMPT, "two blue squares"]
    out = pipe(prompts, search=CONFIG, num_images_per_prompt=2, generator=generators(1)[0], **shared)
    draft, final = out.trace.steps
    drafts = pipe.pipe(
        prompts, num_images_per_prompt=4, generator=generators(1)[0], num_inference_steps=2, output_type="pt"
    ).images
    expected = redness(drafts, None).view(2, 4)
    torch.testing.assert_close(draft.rewards, expected, rtol=0, atol=1e-5)
    assert draft.ancestors.tolist() == expected.topk(2).indices.sort(dim=1).values.tolist()
    whole = pipe.pipe(prompts, num_images_per_prompt=4, generator=generators(1)[0], output_type="pt", **shared).images
    rewards = redness(whole, None).view(2, 4).gather(1, draft.ancestors)
    torch.testing.assert_close(final.rewards, rewards, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.rewards, rewards.sort(descending=True).values, rtol=0, atol=1e-4)


def test_the_trace_holds_both_passes(stock):
    pipe, shared = wrap(stock, "ddim")
    out = pipe(PROMPT, search="draft-refine", num_particles=4, draft_steps=2, generator=generators(4), **shared)
    trace, expected = out.trace, forecast(CONFIG, STEPS)
    assert [(step.step, step.num_particles, step.final) for step in trace.steps] == [(1, 4, False), (7, 2, True)]
    assert (trace.search, trace.config) == ("draft-refine", settings_of(CONFIG))
    assert trace.cost.sample_steps == sum(expected.steps) == 4 * 2 + 2 * STEPS == trace.cost.denoiser_rows // 2
    assert trace.cost.decodes == trace.cost.reward_calls == expected.num_scored == 6
    assert (trace.num_steps, trace.num_model_calls) == (2 + STEPS, 2 + STEPS)
    assert trace.provenance.seeds == (40, 41, 42, 43)
    assert trace.provenance.arguments["num_inference_steps"] == STEPS
    assert (trace.log_evidence, trace.reward_scale, trace.notes) == (None, None, ())
    assert type(trace).from_json(trace.to_json()).lineage().tolist() == trace.lineage().tolist()
    assert "4 particles each (2 at the end)" in trace.summary()
    assert trace.steps[0].thumbnails.shape[:3] == (1, 4, 3)


def test_one_generator_for_a_stochastic_scheduler_is_noted(stock):
    pipe, shared = wrap(stock, "euler-ancestral")
    out = pipe(PROMPT, search=CONFIG, generator=generators(1)[0], **shared)
    assert any("EulerAncestralDiscreteScheduler adds noise" in note for note in out.trace.notes)
    assert pipe(PROMPT, search=CONFIG, generator=generators(4), **shared).trace.notes == ()


@pytest.mark.parametrize("abstain", [False, True])
def test_drafts_and_images_may_be_forbidden(stock, abstain):
    pipe, shared = wrap(stock, "ddim")
    pipe.reward = lambda images, prompts: torch.full((len(images),), -torch.inf)
    search = DraftRefine(num_particles=2, num_refined=1, draft_steps=1, abstain=abstain)
    if not abstain:
        with pytest.raises(ValueError, match="finished images? of prompt 0 ha(s|ve) a reward of -inf"):
            pipe(PROMPT, search=search, **shared)
        return
    out = pipe(PROMPT, search=search, output_type="pt", **shared)
    assert out.abstained.tolist() == [True]
    assert out.images.abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "num_particles should be at least 1"),
        ({"draft_steps": 0}, ValueError, "draft_steps should be at least 1"),
        ({"num_refined": 9}, ValueError, r"num_refined should be in \[1, num_particles = 8\], got 9"),
        ({"num_refined": True}, TypeError, "num_refined should be an int"),
        ({"abstain": None}, TypeError, "abstain should be True or False"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        DraftRefine(**settings)


def test_a_draft_is_no_longer_than_a_whole_trajectory(stock):
    pipe, shared = wrap(stock, "ddim")
    with pytest.raises(ValueError, match="draft_steps should be at most num_inference_steps = 5, got 6"):
        pipe(PROMPT, search="draft-refine", draft_steps=6, **shared)
    with pytest.raises(ValueError, match=r"in \[1, 2\], got 3; DraftRefine finishes 2 particles"):
        pipe(PROMPT, search=CONFIG, num_images_per_prompt=3, **shared)
