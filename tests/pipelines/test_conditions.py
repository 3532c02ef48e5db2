"""Conditions of a denoiser: the same for the particles of a prompt, following their particle, or cut to those left."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from fk_reward.pipelines import conditions, stochastic_scheduler
from fk_reward.pipelines.batching import BatchLayout
from fk_reward.pipelines.conditions import Conditions
from tests import tiny
from tests.pipelines.calls import STEPS, generator, steered
from tests.pipelines.test_families import EXTRA, MAKERS, make
from tests.tiny.families import FAMILIES

PROMPTS = ["a red circle on a blue field", "two stars"]
MIXING = ["HunyuanDiTPipeline", "SanaPipeline", "Kandinsky3Pipeline"]


def build(name):
    """A pipeline, and the arguments of each call that its denoiser gets."""
    pipe, calls = FAMILIES[name].build(), []
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    forward = denoiser.forward

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return forward(*args, **kwargs)

    denoiser.forward = functools.wraps(forward)(counted)
    return pipe, calls


def call(pipe, name, prompts, **arguments):
    conditions = FAMILIES[name].call_arguments(prompts)
    return steered(pipe)(**conditions, num_inference_steps=2, num_particles=2, num_resamples=0, **arguments)


@pytest.mark.parametrize("name", MIXING)
def test_prompts_that_would_influence_one_another_are_refused_before_anything_is_denoised(name):
    """These pipelines repeat masks by batch and embeddings by prompt."""
    pipe, calls = build(name)
    with pytest.raises(
        ValueError, match=f"{name} gives the 2 particles of one prompt different.*Pass one prompt a call"
    ):
        call(pipe, name, PROMPTS)
    assert not calls
    assert call(pipe, name, PROMPTS[:1]).rewards.isfinite().all()


@pytest.mark.parametrize("name", MIXING)
def test_one_particle_a_prompt_and_prompts_of_equal_length_are_not_refused(name):
    pipe, _ = build(name)
    conditions = FAMILIES[name].call_arguments(PROMPTS)
    assert len(steered(pipe)(**conditions, num_inference_steps=2, num_particles=1).images) == 2


def test_a_pipeline_that_orders_its_conditions_by_particle_is_noticed(monkeypatch):
    pipe = tiny.make_sd()
    assert len(steered(pipe)(PROMPTS, num_inference_steps=2, num_particles=2).images) == 2
    encode = pipe.encode_prompt

    def by_particle(*args, **kwargs):
        return tuple(embeds[[0, 2, 1, 3]] for embeds in encode(*args, **kwargs))

    monkeypatch.setattr(pipe, "encode_prompt", by_particle)
    with pytest.raises(ValueError, match="different encoder_hidden_states.*Pass one prompt a call"):
        steered(pipe)(PROMPTS, num_inference_steps=2, num_particles=2)


def lineage(trace):
    """Where the particle of each slot began, before each step."""
    rows, found = torch.arange(trace.steps[0].rewards.shape[1]), {}
    for step in trace.steps[:-1]:
        found[step.step] = rows
        rows = rows if step.ancestors is None else rows[step.ancestors[0]]
    return rows, found


def embeddings_of_each_step(monkeypatch=None):
    """Image embeddings that Kandinsky's UNet is called with, of a prior that draws one for each particle."""
    pipe, calls = build("KandinskyV22CombinedPipeline")
    out = steered(pipe)(
        PROMPTS[:1],
        num_particles=4,
        num_inference_steps=6,
        ess_threshold=1.0,
        reward_scale=1e3,
        generator=generator(),
        **FAMILIES["KandinskyV22CombinedPipeline"].arguments,
    )
    return out.trace, [kwargs["added_cond_kwargs"]["image_embeds"].chunk(2)[1] for kwargs in calls]


def check_embeddings_follow(trace, embeddings):
    assert len({tuple(row.tolist()) for row in embeddings[0]}) == 4
    rows, _ = lineage(trace)
    assert len(set(rows.tolist())) < 4, "else nothing was copied"
    assert torch.equal(embeddings[-1], embeddings[0][rows])


def test_an_embedding_of_its_own_follows_its_particle():
    check_embeddings_follow(*embeddings_of_each_step())


def test_embeddings_that_stay_behind_are_noticed(monkeypatch):
    monkeypatch.setattr(Conditions, "gather", lambda self, take, num_rows: None)
    with pytest.raises(AssertionError):
        check_embeddings_follow(*embeddings_of_each_step())


def test_embeddings_of_their_own_follow_into_a_funnel():
    pipe, calls = build("KandinskyV22CombinedPipeline")
    arguments = FAMILIES["KandinskyV22CombinedPipeline"].arguments
    out = steered(pipe)(PROMPTS[:1], num_particles=4, final_particles=2, num_inference_steps=6, **arguments)
    last = calls[-1]["added_cond_kwargs"]["image_embeds"].chunk(2)[1]
    first = calls[0]["added_cond_kwargs"]["image_embeds"].chunk(2)[1]
    rows, _ = lineage(out.trace)
    assert torch.equal(last, first[rows])


def block_samples_of_each_step():
    """Of a ControlNet's blocks: what it returned, and what the transformer was called with; and the trace."""
    name, made = "StableDiffusion3ControlNetPipeline", []
    pipe, given = build(name)
    pipe.controlnet.register_forward_hook(lambda module, args, output: made.append(output[0]))
    conditions = FAMILIES[name].call_arguments(PROMPTS[:1])
    settings = {"num_particles": 4, "num_inference_steps": 6, "ess_threshold": 1.0, "reward_scale": 1e3}
    pipeline = steered(pipe)
    pipeline.scheduler = stochastic_scheduler(pipe.scheduler)
    return made, given, pipeline(**conditions, **settings, generator=generator()).trace


def test_what_a_controlnet_makes_of_the_particles_is_theirs_already():
    made, given, trace = block_samples_of_each_step()
    assert any(step.ancestors is not None for step in trace.steps)
    assert len(given) == len(made) == 6
    assert all(
        torch.equal(ours, theirs)
        for kwargs, blocks in zip(given, made, strict=True)
        for ours, theirs in zip(kwargs["block_controlnet_hidden_states"], blocks, strict=True)
    )


def test_what_differs_and_is_made_anew_cannot_follow(monkeypatch):
    monkeypatch.setattr("fk_reward.pipelines.conditions._OF_THE_SAMPLE", re.compile("hidden_states"))
    with pytest.raises(ValueError, match="makes block_controlnet_hidden_states.*anew.*num_resamples=0"):
        block_samples_of_each_step()


def test_positions_that_all_share_are_no_conditions_of_a_particle():
    """Their number is that of the particles by chance."""
    pipe, calls = build("Kandinsky5T2IPipeline")
    conditions = FAMILIES["Kandinsky5T2IPipeline"].call_arguments(PROMPTS[:1])
    pipe(**conditions, num_inference_steps=1)
    rows = len(calls[0]["visual_rope_pos"][1])
    pipeline = steered(pipe)
    pipeline.scheduler = stochastic_scheduler(pipe.scheduler)
    calls.clear()
    settings = {"num_particles": rows, "num_inference_steps": 4, "ess_threshold": 1.0, "reward_scale": 1e3}
    out = pipeline(**conditions, **settings, generator=generator())
    assert any(step.ancestors is not None for step in out.trace.steps)
    assert all(torch.equal(kwargs["visual_rope_pos"][1].cpu(), torch.arange(rows)) for kwargs in calls)


def control_of_each_step(**settings):
    """Latents of the control image that each call of Flux's transformer gets, and the trace."""
    name = "FluxControlPipeline"
    pipe, calls = build(name)
    pipeline = steered(pipe)
    pipeline.scheduler = stochastic_scheduler(pipe.scheduler)
    settings = {"num_particles": 4, "num_inference_steps": 6, "ess_threshold": 1.0, "reward_scale": 1e3, **settings}
    conditions = FAMILIES[name].call_arguments(PROMPTS[:1])
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    trace = pipeline(**conditions, **settings, generator=generators).trace
    return trace, [kwargs["hidden_states"].chunk(2, dim=-1)[1] for kwargs in calls]


def test_what_is_joined_to_the_sample_follows_its_particle():
    """The autoencoder draws the latents of the control image for each particle."""
    trace, latents = control_of_each_step()
    check_embeddings_follow(trace, [step.flatten(1) for step in latents])


def test_what_is_joined_and_stays_behind_is_noticed(monkeypatch):
    monkeypatch.setattr("fk_reward.pipelines.conditions._Joined.find", lambda given: None)
    with pytest.raises(AssertionError):
        test_what_is_joined_to_the_sample_follows_its_particle()


def test_what_is_joined_to_the_sample_cannot_shrink():
    with pytest.raises(ValueError, match="FluxControlPipeline joins an image.*leave final_particles out"):
        control_of_each_step(final_particles=2)


FUNNEL_PROMPTS = ["a red circle", "two blue squares"]
FUNNEL = {
    "num_particles": 6,
    "final_particles": 2,
    "num_images_per_prompt": 2,
    "num_resamples": 2,
    "num_inference_steps": STEPS,
    "reward_scale": 1e4,
    "output_type": "pt",
}
TOLERANCE = 1e-5


def generators(first, number):
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + number)]


def difference_between_together_and_alone(family):
    """Largest difference of pixels between two prompts in one call and each by itself."""
    pipe, extra = make(family), EXTRA.get(family, {})
    together = steered(pipe)(FUNNEL_PROMPTS, generator=generators(0, 12), **FUNNEL, **extra)
    alone = [
        steered(pipe)(prompt, generator=generators(6 * place, 6), **FUNNEL, **extra)
        for place, prompt in enumerate(FUNNEL_PROMPTS)
    ]
    assert all(step.ancestors is not None for step in together.trace.steps[:-1])
    return (together.images - torch.cat([out.images for out in alone])).abs().max()


@pytest.mark.parametrize("family", MAKERS)
def test_prompts_do_not_mix_when_their_populations_shrink(family):
    assert difference_between_together_and_alone(family) < TOLERANCE


def test_saboteur_the_first_rows_of_all_prompts_are_noticed(monkeypatch):
    def first_rows(num_blocks, num_particles):
        return BatchLayout(2, num_blocks // 2 * num_particles)

    take = BatchLayout.take

    def take_first(self, value, start, stop, *, name=""):
        return take(self, value, start, stop * len(FUNNEL_PROMPTS), name=name)

    monkeypatch.setattr(conditions, "BatchLayout", first_rows)
    monkeypatch.setattr(BatchLayout, "take", take_first)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        assert difference_between_together_and_alone("sd") < TOLERANCE


@pytest.mark.parametrize("sizes", [{}, {"particle_batch_size": 4}])
def test_the_trace_counts_what_was_left_out(sizes):
    out = steered(tiny.make_sd())(FUNNEL_PROMPTS, generator=generator(), **FUNNEL, **sizes)
    assert [step.num_particles for step in out.trace.steps] == [6, 3, 2]
    steps = [step.step for step in out.trace.steps]
    rows = 6 * (steps[0] + 1) + 3 * (steps[1] - steps[0]) + 2 * (STEPS - steps[1] - 1)
    assert out.trace.num_model_rows == rows * 2 * len(FUNNEL_PROMPTS)
    assert out.trace.num_model_calls == STEPS
    assert out.trace.num_decode_calls == out.trace.num_reward_calls == (6 + 3 + 2) * len(FUNNEL_PROMPTS)
    assert out.trace.lineage().shape == (3, 2)
    assert "6 particles each (2 at the end)" in out.trace.summary()
    assert type(out.trace).from_json(out.trace.to_json()).steps[1].num_particles == 3
    out.trace.plot()


def test_micro_batches_give_the_same_images():
    pipe = tiny.make_sd()
    whole, split = (
        steered(pipe)(FUNNEL_PROMPTS, generator=generator(), particle_batch_size=size, **FUNNEL) for size in (None, 4)
    )
    torch.testing.assert_close(split.images, whole.images, rtol=0, atol=TOLERANCE)


def test_the_reward_gains_by_a_funnel():
    """Twelve starts and two ends against the two starts that are finished without it."""
    pipe = tiny.make_sd()
    many = steered(pipe)("a red circle", generator=generators(0, 12), **FUNNEL | {"num_particles": 12})
    few = steered(pipe)(
        "a red circle",
        generator=generators(0, 2),
        **FUNNEL | {"num_particles": 2, "final_particles": None, "ess_threshold": 1.0},
    )
    assert many.rewards.max() > few.rewards.max()


def test_more_images_than_are_finished_are_refused():
    with pytest.raises(ValueError, match=r"\[1, final_particles = 2\], got 3"):
        steered(tiny.make_sd())("a star", **FUNNEL | {"num_images_per_prompt": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_particles": 9}, "at most num_particles = 6"),
        ({"num_resamples": 0}, "needs a scoring step"),
        ({"reward_scale": 0}, "needs a scoring step"),
        ({"stop_reward": 0.5}, "exclude each other"),
        ({"final_particles": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        steered(tiny.make_sd())("a star", **FUNNEL | settings)


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_a_reward_that_ends_the_scoring(threshold):
    """Brightness is in [0, 1]: reached at once, or never."""
    arguments = {name: value for name, value in FUNNEL.items() if name != "final_particles"}
    out = steered(tiny.make_sd())(FUNNEL_PROMPTS, generator=generator(), stop_reward=threshold, **arguments)
    assert len(out.trace.steps) == (2 if threshold < 0 else 3)
    assert (out.trace.steps[0].ancestors is None) == (threshold < 0)
