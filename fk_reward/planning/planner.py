"""`plan`: what a steered call needs, and with which settings it fits, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.planning.advice import STOP_ADVICE, advice_for, preview_advice
from fk_reward.planning.costs import Picture
from fk_reward.planning.counted import Counted, count
from fk_reward.planning.memory import Settings
from fk_reward.planning.planned import Plan
from fk_reward.planning.search import fitting_settings, smallest_settings
from fk_reward.planning.sizes import parse_memory
from fk_reward.planning.subjects import hollow_subjects
from fk_reward.planning.throughput import estimated_seconds, measured_tflops, parse_tflops
from fk_reward.search.base import forecast
from fk_reward.search.feynman_kac import FKSteeringConfig

DEFAULT_STEPS = 50
"""Scheduler steps where neither the caller nor a solver says how many."""


def plan(  # noqa: PLR0913 (what a call is made from)
    model: str,
    *,
    reward: str,
    num_particles: int | None = None,
    memory: int | str | None = None,
    height: int | None = None,
    width: int | None = None,
    dtype: str | torch.dtype = torch.float16,
    steps: int | None = None,
    guidance_scale: float | None = None,
    preview: str | None = None,
    solver: str | None = None,
    num_resamples: int | None = None,
    final_particles: int | None = None,
    steering: FKSteeringConfig | None = None,
    tflops: float | str | None = None,
) -> Plan:
    """Predict memory and time of a steered call, and choose settings that fit.

    The modules are run on PyTorch's meta device: every tensor has its shape and no numbers, so that a laptop can plan
    for any GPU. Takes seconds for small models and about a minute for SDXL with a reward of billions of parameters.

    Args:
        model: `sd-2.1`, `sd-2.1-base` (512 pixels) or `sdxl`, of which nothing is downloaded; an embedded model, a
            folder or a hub id, of which the configurations are read.
        reward: registered name, or a composition of names.
        num_particles: K, of one prompt; None for that of `steering`.
        memory: of the GPU, in bytes or as `"24GB"` (10⁹ bytes) or `"24GiB"`; None for no limit.
        height: in pixels, None for the pipeline's default.
        width: the same.
        dtype: of the pipeline; the reward has that of its own loader.
        steps: scheduler steps, None for the solver's, or 50.
        guidance_scale: None for the solver's, or the pipeline's default; 1 halves the work.
        preview: decodes at the scoring steps, by name as for `FKSteeringPipeline`; a published tiny autoencoder needs
            no file. None for the pipeline's own autoencoder.
        solver: name of `SOLVERS`. None for the pipeline's scheduler, one call of the denoiser for each step.
        num_resamples: scoring steps before the end, None for that of `steering`.
        final_particles: K', particles at the end; None for that of `steering`.
        steering: the other settings of the sampler; None for the defaults. With `stop_reward` operations and time are
            the most that a call takes.
        tflops: 10¹² operations a second that the GPU reaches, or `"float16=400,float32=40"`; None to measure them where
            there is a GPU.

    Raises:
        ValueError: for a reward of unknown size, an unknown solver, a preview of other latents than the pipeline's, an
            amount of memory that cannot be read, ...

    Example:
        >>> result = plan("shapes-sd", reward="shapes-clipscore", memory="1GB", dtype="float32")
        >>> result.fits, result.settings.particle_batch_size
        (True, 4)
    """
    floating = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    limit, preset = parse_memory(memory), resolve_solver(solver)
    config = _with_given(
        steering or FKSteeringConfig(),
        num_particles=num_particles,
        num_resamples=num_resamples,
        final_particles=final_particles,
    )
    with hollow_subjects(model, reward, dtype=floating, preview=preview, solver=preset) as subjects:
        defaults = {} if preset is None else preset.arguments(subjects.pipe)
        num_steps = defaults.get("num_inference_steps", DEFAULT_STEPS) if steps is None else steps
        guidance = defaults.get("guidance_scale") if guidance_scale is None else guidance_scale
        picture = Picture(height, width, guidance)
        counted = count(subjects, picture, forecast(config, num_steps), previewed=preview is not None)
    asked = {
        "model": model,
        "reward": reward,
        "steering": config,
        "picture": picture,
        "dtype": str(floating).removeprefix("torch."),
        "steps": num_steps,
        "preview": preview,
        "solver": solver,
        "memory": limit,
    }
    return _planned(counted, asked, _rates(tflops, counted.flops))


def _with_given(steering: FKSteeringConfig, **given: int | None) -> FKSteeringConfig:
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(steering, **settings)


def _planned(counted: Counted, asked: dict[str, Any], rates: dict[str, float]) -> Plan:
    """Choose settings, and say what they come to; `asked` are the fields of the plan that the caller gave."""
    memory, steering, model = asked["memory"], asked["steering"], counted.model
    can_offload = counted.can_offload_reward
    settings = fitting_settings(model, memory, can_offload_reward=can_offload, num_scorings=counted.num_scorings)
    chosen = settings or smallest_settings(can_offload_reward=can_offload)
    needs = model.needs(chosen)
    request = (asked["reward"], steering.num_particles, getattr(torch, asked["dtype"]))
    advice = (
        *advice_for(chosen, needs, None if settings else memory, request=request),
        *_preview_advice(counted, chosen, rates),
        *(() if steering.stop_reward is None else (STOP_ADVICE,)),
    )
    return Plan(
        **asked,
        fits=settings is not None,
        settings=chosen,
        phases=needs,
        weights=counted.weights,
        flops=counted.flops,
        tflops=rates,
        seconds=estimated_seconds(counted.flops, rates) if rates else None,
        advice=advice,
    )


def _preview_advice(counted: Counted, settings: Settings, rates: dict[str, float]) -> tuple[str, ...]:
    """What a preview would save, where there is one and none was asked for."""
    if counted.flops_with_preview is None:
        return ()
    models = (counted.model, replace(counted.model, previewed=True))
    peaks = [max(need.peak for need in model.needs(settings)) for model in models]
    return preview_advice(counted.flops, counted.flops_with_preview, rates=rates, peaks=(peaks[0], peaks[1]))


def _rates(tflops: float | str | None, flops: Mapping[str, int]) -> dict[str, float]:
    if tflops is not None:
        return parse_tflops(str(tflops))
    if not torch.cuda.is_available():
        return {}
    return {dtype: measured_tflops("cuda", getattr(torch, dtype)) for dtype, count in flops.items() if count}
