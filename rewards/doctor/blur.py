"""Does an image beat a blurred copy of itself?"""

from __future__ import annotations

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe, in_words, win
from fk_reward.rewards.doctor.specimens import blurred


def _examine(patient: Patient) -> Finding:
    if patient.is_blind_to("quality"):
        return not_applicable("a bad image may have a good score, as its card says.")
    margins = patient.margins(blurred(patient.specimens.images))
    observed = f"images against blurred copies: {in_words(margins, patient.scale)}."
    if win(margins, patient.tolerance):
        return passed(observed)
    return failed(
        observed,
        remedy="The reward does not see detail: is the size of its preprocessing that of the model (num_crops, "
        "max_pixels, size)? Steering with it may blur.",
    )


BLUR = Probe("Does an image get a better score than a copy that is blurred beyond recognition?", _examine)
