"""Do PIL images and 8-bit tensors get the scores of floating tensors?"""

from __future__ import annotations

import torch

from fk_reward.rewards.doctor.findings import Finding, failed, passed
from fk_reward.rewards.doctor.patient import Patient, Probe
from fk_reward.rewards.inputs import Images, to_pil

_SHARE = 0.25
"""Of the scale. 8-bit images are resized by PIL, which rounds on the way; floating ones are not rounded."""


def _examine(patient: Patient) -> Finding:
    images, prompts = patient.specimens.images, patient.specimens.prompts
    expected = patient.score(images, prompts)
    kinds: dict[str, Images] = {"PIL images": to_pil(images), "uint8 tensors": (images * 255).round().to(torch.uint8)}
    apart = {name: (patient.score(kind, prompts) - expected).abs().max().item() for name, kind in kinds.items()}
    observed = ", ".join(f"{name} {difference:.2g}" for name, difference in apart.items())
    allowed = max(_SHARE * patient.scale, patient.tolerance)
    if max(apart.values()) <= allowed:
        return passed(f"apart from floating tensors: {observed}.")
    return failed(
        f"apart from floating tensors: {observed}, where rounding explains {allowed:.2g}.",
        remedy="One of them is read in another range or another order of channels: does `score` divide by 255 what is "
        "in [0, 1] already, or take RGB for BGR?",
    )


KINDS = Probe("Do PIL images and 8-bit tensors get the same score as floating tensors?", _examine)
