"""What a denoiser is told besides the sample: the same for the particles of a prompt, or it follows its particle."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from fk_reward.pipelines import stochastic_scheduler
from fk_reward.pipelines.conditions import Conditions
from tests import tiny
from tests.pipelines.calls import generator, steered
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
