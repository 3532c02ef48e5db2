"""Floating-point operations of a whole call, from those of its phases."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fk_reward.pipelines import ReducedResolution
from fk_reward.pipelines.decoding import widens_to_float32
from fk_reward.planning.memory import MemoryModel
from fk_reward.planning.subjects import Subjects
from fk_reward.search.base import Forecast


def flops_by_dtype(subjects: Subjects, model: MemoryModel, course: Forecast) -> dict[str, int]:
    """Operations of a call, by the dtype in which they are done.

    Args:
        subjects: the pipeline, the reward and the preview.
        model: costs of the phases, and whether the scoring steps have a preview.
        course: the particles of the call.
    """
    pipe_dtype, vae_dtype = str(subjects.denoiser.dtype), _decoder_dtype(subjects.pipe)
    decode, score = ("preview", "preview reward") if model.previewed else ("decode", "reward")
    by_own_decoder = not model.previewed or isinstance(subjects.preview, ReducedResolution)
    flops: Counter[str] = Counter()
    flops[pipe_dtype] += model.all.flops["text"] + sum(model.flops("denoise", n) for n in course.steps)
    flops[vae_dtype if by_own_decoder else pipe_dtype] += sum(model.flops(decode, n) for n in course.scorings)
    flops[vae_dtype] += model.flops("decode", course.finished)
    reward_dtype = _reward_dtype(subjects)
    if reward_dtype is not None:
        scored = [model.flops(score, n) for n in course.scorings]
        flops[reward_dtype] += sum(scored) + model.flops("reward", course.finished)
    return {dtype.removeprefix("torch."): count for dtype, count in flops.items()}


def _decoder_dtype(pipe: Any) -> str:
    """That of the autoencoder, or float32 where it is widened."""
    vae: Any = getattr(pipe, "vae", None)
    dtype = str(getattr(vae, "dtype", "torch.float32"))
    return "torch.float32" if vae is not None and widens_to_float32(pipe, vae) else dtype


def _reward_dtype(subjects: Subjects) -> str | None:
    """That of the largest weight; None for a rule without weights."""
    weights = [tensor for tensor in subjects.reward_weights() if tensor.is_floating_point()]
    return str(max(weights, key=lambda tensor: tensor.numel()).dtype) if weights else None
