"""Does the reward look at the edges of wide and tall images?"""

from __future__ import annotations

import torch
from torch import Tensor

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe
from fk_reward.rewards.doctor.specimens import noise


def _examine(patient: Patient) -> Finding:
    seen = {name: _sees_edges(patient, axis) for name, axis in (("wide", 3), ("tall", 2))}
    unseen = [name for name, is_seen in seen.items() if not is_seen]
    if not unseen:
        return passed("the outer 60 % of wide and of tall images change the score.")
    if patient.is_blind_to("edges"):
        return not_applicable(f"it looks at {patient.reward.card.looks_at}, as its card says: score square images.")
    return failed(
        f"overwriting the outer 60 % of {' and '.join(unseen)} images changes nothing.",
        remedy="Its preprocessing cuts out the centre: pad to a square instead (pad_to_square=True where the reward "
        'has it), or score square images, and say blind_to=("edges",) in the card.',
    )


def _sees_edges(patient: Patient, axis: int) -> bool:
    """Whether images of three specimens in a row have another score when most of the outer two is overwritten."""
    images = patient.specimens.images
    row = torch.cat([images.roll(1, dims=0), images, images.roll(-1, dims=0)], dim=axis)
    changed = _overwritten(row, axis)
    prompts = patient.specimens.prompts
    # A reward that compares must see both in one call, where identical images have identical scores.
    scores = patient.score(torch.cat([row, changed]), [*prompts, *prompts])
    before, after = scores.chunk(2)
    return bool((before != after).any())


def _overwritten(row: Tensor, axis: int) -> Tensor:
    length = row.shape[axis]
    keep = range(round(0.3 * length), round(0.7 * length))
    inner = torch.zeros(length, dtype=torch.bool)
    inner[list(keep)] = True
    shape = [1, 1, 1, 1]
    shape[axis] = length
    return torch.where(inner.view(shape), row, noise(row))


CROP = Probe("Do the outer parts of wide and of tall images count?", _examine)
