"""Does a score depend on what else is in the batch?"""

from __future__ import annotations

import torch

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe


def _examine(patient: Patient) -> Finding:
    if patient.reward.compares_images:
        return not_applicable("it compares the images of a prompt in a call, so their scores depend on one another.")
    images, prompts = patient.specimens.images, patient.specimens.prompts
    together = patient.score(images, prompts)
    alone = torch.cat([patient.score(images[i : i + 1], prompts[i : i + 1]) for i in range(len(prompts))])
    order = list(range(len(prompts)))[::-1]
    turned = patient.score(images[order], [prompts[i] for i in order])[order]
    worst = max((together - alone).abs().max().item(), (together - turned).abs().max().item())
    observed = f"alone and in batches of {len(prompts)} in two orders: {worst:.2g} apart at most"
    if worst <= patient.tolerance:
        return passed(f"{observed}.")
    return failed(
        f"{observed}, where rounding explains {patient.tolerance:.2g}.",
        remedy="Images of a batch reach one another: normalisation over the batch, a missing attention mask, or "
        "padding on the wrong side. Until it is mended, score with batch_size=1.",
    )


BATCH = Probe("Is the score of an image the same alone and in a batch?", _examine)
