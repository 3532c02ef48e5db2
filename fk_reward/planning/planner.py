"""`plan`: what a steered call needs, and with which settings it fits, before anything is downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fk_reward.config import FKSteeringConfig
from fk_reward.pipelines.decoding import widens_to_float32
from fk_reward.planning.advice import advice_for
from fk_reward.planning.costs import BatchCosts, Picture, batch_costs
from fk_reward.planning.memory import MemoryModel, PhaseNeed, Settings
from fk_reward.planning.search import fitting_settings, smallest_settings
from fk_reward.planning.sizes import parse_memory
from fk_reward.planning.subjects import Subjects, hollow_subjects, weight_bytes
from fk_reward.planning.throughput import estimated_seconds, measured_tflops, parse_tflops


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a steered call of one prompt needs. Bytes are counted from shapes; seconds are an estimate.

    Attributes:
        model: as given.
        reward: as given.
        num_particles: K.
        picture: height, width and guidance scale, None for the pipeline's own.
        dtype: of the pipeline.
        steps: scheduler steps.
        num_scorings: scoring steps, and the finished pictures.
        memory: bytes of the GPU; None for no limit.
        fits: whether `settings` fit.
        settings: those to use; the smallest ones where nothing fits.
        phases: bytes at the peak of each phase, under these settings.
        weights: bytes of text encoders, denoiser, decoder, other parts of the pipeline, and reward.
        flops: floating-point operations of a call, by dtype.
        tflops: 10¹² operations a second, by dtype; empty where nobody gave or measured them.
        seconds: operations over operations a second, None without the latter. Moving weights is not in it, nor is what
            a model loses against plain matrix products.
        advice: what to write or what to change, a sentence each.
    """

    model: str
    reward: str
    num_particles: int
    picture: Picture
    dtype: str
    steps: int
    num_scorings: int
    memory: int | None
    fits: bool
    settings: Settings
    phases: tuple[PhaseNeed, ...]
    weights: Mapping[str, int]
    flops: Mapping[str, int]
    tflops: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    advice: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Most bytes that PyTorch's allocator will hold: what `torch.cuda.max_memory_allocated` tells."""
        return max(phase.peak for phase in self.phases)

    @property
    def needed(self) -> int:
        """Bytes that the GPU should have: the peak, the CUDA context, and what the allocator cannot reuse."""
        return max(phase.needed for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        phases = [asdict(phase) | {"peak": phase.peak, "needed": phase.needed} for phase in self.phases]
        return asdict(self) | {"phases": phases, "peak": self.peak, "needed": self.needed}


def plan(  # noqa: PLR0913 (what a call is made from)
    model: str,
    *,
    reward: str,
    num_particles: int = 4,
    memory: int | str | None = None,
    height: int | None = None,
    width: int | None = None,
    dtype: str | torch.dtype = torch.float16,
    steps: int = 50,
    guidance_scale: float | None = None,
    num_resamples: int | None = None,
    tflops: float | str | None = None,
) -> Plan:
    """Predict memory and time of a steered call, and choose settings that fit.

    The modules are run on PyTorch's meta device: every tensor has its shape and no numbers, so that a laptop can plan
    for any GPU. Takes seconds for small models and about a minute for SDXL with a reward of billions of parameters.

    Args:
        model: `sd-2.1`, `sd-2.1-base` (512 pixels) or `sdxl`, of which nothing is downloaded; an embedded model, a
            folder or a hub id, of which the configurations are read.
        reward: registered name, or a composition of names.
        num_particles: K, of one prompt.
        memory: of the GPU, in bytes or as `"24GB"` (10⁹ bytes) or `"24GiB"`; None for no limit.
        height: in pixels, None for the pipeline's default.
        width: the same.
        dtype: of the pipeline; the reward has that of its own loader.
        steps: scheduler steps.
        guidance_scale: None for the pipeline's default; 1 halves the work.
        num_resamples: scoring steps before the end, None for that of `FKSteeringConfig`.
        tflops: 10¹² operations a second that the GPU reaches, or `"float16=400,float32=40"`; None to measure them where
            there is a GPU.

    Raises:
        ValueError: for a reward of unknown size, an amount of memory that cannot be read, ...

    Example:
        >>> result = plan("shapes-sd", reward="shapes-clipscore", memory="1GB", dtype="float32")
        >>> result.fits, result.settings.particle_batch_size
        (True, 4)
    """
    floating = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    picture = Picture(height, width, guidance_scale)
    limit = parse_memory(memory)
    options: dict[str, Any] = {} if num_resamples is None else {"num_resamples": num_resamples}
    config = FKSteeringConfig(num_particles=num_particles, **options)
    num_scorings = 1 + (len(config.scoring_steps(steps)) if config.resamples else 0)
    with hollow_subjects(model, reward, dtype=floating) as subjects:
        memory_model = _memory_model(subjects, picture, num_particles)
        flops = _flops_by_dtype(subjects, memory_model.all, (steps, num_scorings))
        can_offload = subjects.can_offload_reward
    settings = fitting_settings(memory_model, limit, can_offload_reward=can_offload, num_scorings=num_scorings)
    chosen = settings or smallest_settings(can_offload_reward=can_offload)
    rates = _rates(tflops, flops)
    needs = memory_model.needs(chosen)
    return Plan(
        model=model,
        reward=reward,
        num_particles=num_particles,
        picture=picture,
        dtype=_name(floating),
        steps=steps,
        num_scorings=num_scorings,
        memory=limit,
        fits=settings is not None,
        settings=chosen,
        phases=needs,
        weights=memory_model.weights,
        flops=flops,
        tflops=rates,
        seconds=estimated_seconds(flops, rates) if rates else None,
        advice=advice_for(
            chosen, needs, limit if settings is None else None, request=(reward, num_particles, floating)
        ),
    )


def _memory_model(subjects: Subjects, picture: Picture, num_particles: int) -> MemoryModel:
    weights = {name: weight_bytes(tensors) for name, tensors in subjects.pipeline_weights().items()}
    one = batch_costs(subjects, picture, batch_size=1)
    all_of_them = one if num_particles == 1 else batch_costs(subjects, picture, batch_size=num_particles)
    reward = weight_bytes(subjects.reward_weights())
    return MemoryModel(num_particles=num_particles, weights=weights | {"reward": reward}, one=one, all=all_of_them)


def _flops_by_dtype(subjects: Subjects, costs: BatchCosts, counts: tuple[int, int]) -> dict[str, int]:
    """Operations of a call of all particles; `counts` are those of steps and of scorings."""
    steps, num_scorings = counts
    pipe_dtype = _name(subjects.denoiser.dtype)
    vae = getattr(subjects.pipe, "vae", None)
    upcast = vae is not None and widens_to_float32(subjects.pipe, vae)
    flops: Counter[str] = Counter({pipe_dtype: costs.flops["text"] + steps * costs.flops["denoise"]})
    flops["float32" if upcast else pipe_dtype] += num_scorings * costs.flops["decode"]
    weights = [tensor for tensor in subjects.reward_weights() if tensor.is_floating_point()]
    if weights:
        flops[_name(max(weights, key=lambda tensor: tensor.numel()).dtype)] += num_scorings * costs.flops["reward"]
    return dict(flops)


def _rates(tflops: float | str | None, flops: Mapping[str, int]) -> dict[str, float]:
    if tflops is not None:
        return parse_tflops(str(tflops))
    if not torch.cuda.is_available():
        return {}
    return {dtype: measured_tflops("cuda", getattr(torch, dtype)) for dtype, count in flops.items() if count}


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
