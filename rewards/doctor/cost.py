"""What does a call cost here?"""

from __future__ import annotations

import torch
from torch.utils.benchmark import timer

from fk_reward.rewards.doctor.findings import Finding, passed
from fk_reward.rewards.doctor.patient import Patient, Probe


def _examine(patient: Patient) -> Finding:
    images, prompts = patient.specimens.images, patient.specimens.prompts
    patient.score(images, prompts)  # warms up
    cuda = patient.reward.device is not None and patient.reward.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(patient.reward.device)
    single = _milliseconds(patient, 1)
    batch = _milliseconds(patient, len(images)) / len(images)
    weights = {w.data_ptr(): w for module in patient.modules for w in module.parameters()}
    facts = [
        f"{single:.3g} ms for one image of {images.shape[-1]} x {images.shape[-2]} pixels",
        f"{batch:.3g} ms an image in a batch of {len(images)}",
        f"weights of {sum(weight.nbytes for weight in weights.values()) / 1e9:.3g} GB",
    ]
    if cuda:
        facts.append(f"{torch.cuda.max_memory_allocated(patient.reward.device) / 1e9:.3g} GB at the peak")
    return passed(", ".join(facts) + ".")


def _milliseconds(patient: Patient, count: int) -> float:
    """Of a call, the shorter of two."""
    images, prompts, times = patient.specimens.images[:count], patient.specimens.prompts[:count], []
    for _ in range(2):
        start = timer()  # waits for the accelerator
        patient.score(images, prompts)
        times.append(timer() - start)
    return 1000 * min(times)


COST = Probe("What does a call cost in time and memory?", _examine)
