"""Plans of previews, solvers and shrinking populations against calls that are really made, on the CPU."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import pytest

from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import LatentDecoder, steered_run
from fk_reward.planning import plan
from fk_reward.planning.costs import PROMPT
from fk_reward.planning.meta_device import LiveBytes, flop_counter

MODEL, REWARD = "shapes-sd", "shapes-clipscore"
FUNNEL = {"num_particles": 8, "final_particles": 2, "num_resamples": 2}
CALLS = {
    "plain": {"num_particles": 8, "num_resamples": 2, "steps": 5},
    "tiny preview": {"num_particles": 8, "num_resamples": 2, "steps": 5, "preview": "shapes-preview"},
    "reduced preview": {"num_particles": 8, "num_resamples": 2, "steps": 5, "preview": "vae/2"},
    "funnel": {**FUNNEL, "steps": 5},
    "funnel with preview": {**FUNNEL, "steps": 5, "preview": "auto"},
    "more scoring steps": {"num_particles": 8, "num_resamples": 4, "steps": 5},
    "solver": {"num_particles": 2, "solver": "sde-dpmsolver++-20"},
    "solver without guidance": {"num_particles": 8, "solver": "lcm-4", "num_resamples": 2},
}


@dataclass(frozen=True)
class Made:
    """What a call took: bytes above the weights at its peak and in its first decoding, operations, and counts."""

    peak: int
    first_decoding: int
    flops: int
    counts: tuple[int, int, int]


def guidance(name):
    """Few-step solvers have their own, which is none."""
    return {} if CALLS[name].get("solver") == "lcm-4" else {"guidance_scale": 3.0}


@functools.cache
def planned(name):
    options = CALLS[name]
    return plan(MODEL, reward=REWARD, dtype="float32", **guidance(name), **options)


@functools.cache
def made(name):
    """The call, with thumbnails of a single pixel: they are never on the GPU."""
    options = dict(CALLS[name])
    names = {"steps": "num_inference_steps"}
    settings = {key: options.pop(key) for key in ("preview", "solver") if key in options}
    pipe = FKSteeringPipeline.from_pretrained(MODEL, reward=REWARD, **settings)
    pipe.set_progress_bar_config(disable=True)
    arguments = {names.get(key, key): value for key, value in options.items()}
    decode, decodings = LatentDecoder.__call__, []
    with pytest.MonkeyPatch.context() as patch, flop_counter() as counter, LiveBytes() as tracker:

        def watched(decoder, latents):
            before = tracker.peak
            tracker.restart()
            images = decode(decoder, latents)
            decodings.append(tracker.peak)
            tracker.peak = max(before, tracker.peak)
            return images

        patch.setattr(LatentDecoder, "__call__", watched)
        patch.setattr(steered_run, "_THUMBNAIL_SIZE", 1)
        trace = pipe(PROMPT, **guidance(name), **arguments).trace
    counts = (trace.num_model_rows, trace.num_decode_calls, trace.num_reward_calls)
    return Made(tracker.peak, decodings[0], counter.get_total_flops(), counts)


def check(plan, call):
    """That the plan is of this call."""
    rows = 1 if plan.solver == "lcm-4" else 2
    forecast = plan.population
    assert call.counts == (rows * sum(forecast.steps), forecast.num_scored, forecast.num_scored)
    assert sum(plan.flops.values()) == pytest.approx(call.flops, rel=1e-3)
    assert plan.peak - sum(plan.weights.values()) == pytest.approx(call.peak, rel=0.03)
    phases = {phase.phase: phase for phase in plan.phases}
    decoding = phases.get("preview", phases["decode"])
    assert decoding.kept + decoding.activations == pytest.approx(call.first_decoding, rel=0.05)


@pytest.mark.parametrize("name", CALLS)
def test_a_real_call_takes_what_the_plan_says(name):
    check(planned(name), made(name))


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(CALLS, 2)))
def test_the_plan_of_another_call_is_noticed(name, other):
    with pytest.raises(AssertionError):
        check(planned(other), made(name))
