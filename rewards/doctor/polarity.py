"""Does the better of two known images win?"""

from __future__ import annotations

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe, in_words, win


def _examine(patient: Patient) -> Finding:
    worse = patient.specimens.worse
    if worse is None:
        return not_applicable("no worse images were given: --worse FILE for each --image.")
    margins = patient.margins(worse)
    observed = f"images against those that are known to be worse: {in_words(margins, patient.scale)}."
    if win(margins, patient.tolerance):
        return passed(observed)
    return failed(
        observed,
        remedy="The score is upside down, or does not see the difference: does the card's higher_is_better hold, is "
        "the adapter that of this dimension?",
    )


POLARITY = Probe("Does an image get a better score than one that is known to be worse?", _examine)
