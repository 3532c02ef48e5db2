"""Is the score the same again?"""

from __future__ import annotations

from fk_reward.rewards.doctor.findings import Finding, failed, passed
from fk_reward.rewards.doctor.patient import Patient, Probe


def _examine(patient: Patient) -> Finding:
    images, prompts = patient.specimens.images, patient.specimens.prompts
    worst = (patient.score(images, prompts) - patient.score(images, prompts)).abs().max().item()
    if worst <= patient.tolerance:
        return passed(f"two calls are {worst:.2g} apart.")
    return failed(
        f"two calls are {worst:.2g} apart, where rounding explains {patient.tolerance:.2g}.",
        remedy="Something is drawn at random: is dropout on (call .eval()), does a judge answer at temperature 0?",
    )


REPEAT = Probe("Is the score the same when the same call is made again?", _examine)
