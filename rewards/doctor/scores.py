"""Are there scores at all: finite, and different for different images?"""

from __future__ import annotations

import torch

from fk_reward.rewards.doctor.findings import Finding, failed, passed
from fk_reward.rewards.doctor.patient import Patient, Probe


def _examine(patient: Patient) -> Finding:
    scores = patient.matching
    low, high = scores.min().item(), scores.max().item()
    if not scores.isfinite().all():
        return failed(
            f"{int((~scores.isfinite()).sum())} of {len(scores)} images are forbidden (-inf).",
            remedy="Look at what forbids them: a gate of the composition, or an overflow in the weights' dtype.",
        )
    # All images may match their prompts perfectly, but then the wrong prompts have other scores.
    everything = torch.cat([scores, patient.mismatched.flatten()])
    if everything.max() - everything.min() <= 1e-9 * everything.abs().max():
        return failed(
            f"every image gets {low:.6g}, with whatever prompt.",
            remedy="The weights that make the score are missing: a head or adapter of zeros, or a file that was not "
            "read. Load the checkpoint again and look at its warnings.",
        )
    return passed(f"{len(scores)} finite scores from {low:.4g} to {high:.4g}.")


SCORES = Probe("Are the scores finite, and different for different images?", _examine)
