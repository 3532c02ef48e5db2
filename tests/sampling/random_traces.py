"""Traces of random numbers, and an independent way to read a lineage."""

from __future__ import annotations

import torch

from fk_reward.sampling.trace import Provenance, SteeringTrace, TraceStep


def make_trace(*, groups=2, particles=4, steps=4, selected=1, thumbnails=True, seed=0, size=(8, 6), prompt="a star"):
    """A trace of random numbers; every second step resamples."""
    generator = torch.Generator().manual_seed(seed)
    records = [
        _make_step(
            index, groups, particles, final=index == steps - 1, generator=generator, size=size if thumbnails else None
        )
        for index in range(steps)
    ]
    return SteeringTrace(
        prompts=tuple(f"{prompt} {g}" for g in range(groups)),
        config={"num_particles": particles, "ess_threshold": 0.5, "potential": "max", "reward_scale": "auto"},
        reward_name="shapes-clipscore",
        reward_scale=torch.rand(groups, generator=generator, dtype=torch.float64),
        steps=tuple(records),
        log_evidence=torch.randn(groups, generator=generator, dtype=torch.float64),
        selected=records[-1].rewards.topk(selected, dim=1).indices,
        num_steps=10 * (steps - 1),
        num_model_calls=10,
        num_model_rows=20 * particles,
        num_decode_calls=steps * particles,
        num_reward_calls=steps * particles,
        seconds=1 / 3,
        notes=("0 of 2 prompts were resampled.",),
        provenance=Provenance(
            pipeline="StableDiffusionPipeline",
            scheduler="DDIMScheduler",
            scheduler_config={"clip_sample": False, "trained_betas": None, "steps": [1, 2]},
            replaced_scheduler="PNDMScheduler",
            eta=1.0,
            seeds=(seed,),
            versions={"torch": "2"},
        ),
    )


def _make_step(index, groups, particles, *, final, generator, size):
    weights = torch.randn(groups, particles, generator=generator, dtype=torch.float64)
    draws = torch.randint(particles, (groups, particles), generator=generator)
    shape = (groups, particles, 3, *(size or (1, 1)))
    return TraceStep(
        step=10 * index,
        timestep=0.0 if final else 1000 / (index + 3),
        rewards=torch.randn(groups, particles, generator=generator),
        log_weights=weights,
        ess=1 / (weights.softmax(dim=1) ** 2).sum(dim=1),
        ancestors=None if final or index % 2 else draws,
        decode_seconds=0.1,
        reward_seconds=1e-300,
        thumbnails=torch.randint(256, shape, generator=generator, dtype=torch.uint8) if size else None,
        final=final,
    )


def carry_labels(trace, group):
    """Oracle: play the run forwards. Every slot carries its history, and resampling copies histories."""
    histories = [[] for _ in range(trace.num_particles)]
    for step in trace.steps:
        histories = [[*history, slot] for slot, history in enumerate(histories)]
        if step.ancestors is not None:
            histories = [list(histories[a]) for a in step.ancestors[group].tolist()]
    return [list(row) for row in zip(*histories, strict=True)]
