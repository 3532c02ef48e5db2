"""Does an image beat black, white and noise?"""

from __future__ import annotations

import torch

from fk_reward.rewards.doctor.findings import Finding, failed, passed
from fk_reward.rewards.doctor.patient import Patient, Probe, in_words, win
from fk_reward.rewards.doctor.specimens import noise


def _examine(patient: Patient) -> Finding:
    images = patient.specimens.images
    blanks = {"black": torch.zeros_like(images), "white": torch.ones_like(images), "noise": noise(images)}
    margins = {name: patient.margins(blank) for name, blank in blanks.items()}
    if patient.is_blind_to("quality"):  # scores had to be finite all the same
        return passed("black, white and noise have finite scores; whether they are low does not matter, by the card.")
    lost = [name for name, margin in margins.items() if not win(margin, patient.tolerance)]
    if not lost:
        least = min(margins.values(), key=lambda margin: margin.mean())
        return passed(f"images against black, white and noise: at the least, {in_words(least, patient.scale)}.")
    return failed(
        "; ".join(f"against {name} {in_words(margins[name], patient.scale)}" for name in lost) + ".",
        remedy="Steering will find such images. Are range, channels and normalisation of the images those of the "
        "model? If they are, combine the reward with one that the images satisfy, or show it images of its own kind: "
        "--image FILE --prompt TEXT.",
    )


BLANK = Probe("Does an image get a better score than black, white and noise?", _examine)
