"""Does the score survive half precision, and is it spared from its rounding?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fk_reward.rewards.base import NonFiniteScoreError
from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe, parts_of

_LARGEST = 4e9
"""Bytes of weights in float32 that are converted; more may not fit beside the reward."""

_SHARE = 0.5
"""Of the scale, by which the score of an image may change from one dtype to the other."""

_COARSE = 0.1
"""Of the scale: a grid of scores that is wider makes images equal that are not."""


def _examine(patient: Patient) -> Finding:
    if not _weights(patient):
        return not_applicable("it has no weights.")
    if (coarse := _coarse(patient)) is not None:
        return coarse
    other = patient.reward.half_dtype if patient.dtype == torch.float32 else torch.float32
    if reason := _cannot_convert(patient):
        return not_applicable(f"scores are finer than {patient.dtype} ({reason}).")
    try:
        with converted(patient, other):
            scores = patient.score(patient.specimens.images, patient.specimens.prompts)
    except NonFiniteScoreError as error:
        return failed(
            f"in {_name(other)} a score is {error.score}.",
            remedy=f"{_name(other)} overflows: load it in bfloat16 or float32, and keep the head in float32.",
        )
    apart = (scores - patient.score(patient.specimens.images, patient.specimens.prompts)).abs().max().item()
    observed = f"{_name(patient.dtype)} and {_name(other)} are {apart:.2g} apart ({apart / patient.scale:.2g} spreads)"
    if apart <= _SHARE * patient.scale:
        return passed(f"{observed}.")
    return failed(
        f"{observed}, which decides between images.",
        remedy="Keep head and dot product in float32, or load the reward in float32: torch_dtype=torch.float32.",
    )


def _coarse(patient: Patient) -> Finding | None:
    """A failure if all scores are on the grid of a half precision that is too coarse for them."""
    scores = torch.cat([patient.matching, patient.mismatched.flatten()])
    for dtype in (torch.bfloat16, torch.float16):
        step = torch.finfo(dtype).eps * scores.abs().max().item() / 2
        if torch.equal(scores.to(dtype).double(), scores) and step > _COARSE * patient.scale:
            return failed(
                f"all scores are multiples of {_name(dtype)}'s resolution, {step:.2g} here ({step / patient.scale:.2g} "
                "spreads).",
                remedy="Head or dot product are computed in half precision, so that images tie: convert what they read "
                "with .float() first.",
            )
    return None


@contextmanager
def converted(patient: Patient, dtype: torch.dtype) -> Iterator[None]:
    """Convert the weights of a reward inside a `with` block; afterwards they are the same tensors as before.

    Args:
        patient: its reward may be on any device; the old weights stay beside the new ones.
        dtype: floating.
    """
    tensors = [tensor for module in patient.modules for tensor in (*module.parameters(), *module.buffers())]
    saved = [(tensor, tensor.data) for tensor in tensors]
    patient.reward.to(dtype=dtype)
    try:
        yield
    finally:
        for tensor, data in saved:
            tensor.data = data


def _weights(patient: Patient) -> list[nn.Parameter]:
    return [weight for module in patient.modules for weight in module.parameters()]


def _cannot_convert(patient: Patient) -> str:
    """Why the weights are left as they are; empty if they need not be."""
    size = 4 * sum(weight.numel() for weight in _weights(patient))
    if size > _LARGEST:
        return f"not compared with float32: {size / 1e9:.3g} GB of weights"
    modules = [part for module in patient.modules for part in module.modules()]
    if any(getattr(part, "is_quantized", False) or hasattr(part, "hf_device_map") for part in modules):
        return "quantised or spread over devices, so not converted"
    offloaded = any(getattr(part, "offload", False) for part in parts_of(patient.reward))
    return "its weights rest on the CPU between calls" if offloaded else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


DTYPE = Probe("Is the score the same in half precision and in float32, and finer than half precision?", _examine)
