"""Does the prompt count, and in the right direction?"""

from __future__ import annotations

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe, in_words, win

_SHARE = 0.75
"""Of the pairs. A reward that guesses has as many by chance in one of a hundred examinations."""


def _examine(patient: Patient) -> Finding:
    if patient.is_blind_to("prompt"):
        return not_applicable("the score does not depend on the prompt, as its card says.")
    margins = patient.better(patient.matching, patient.mismatched)
    observed = f"right prompts against wrong ones: {in_words(margins, patient.scale)}."
    if win(margins, patient.tolerance, share=_SHARE):
        return passed(observed)
    if margins.abs().max() <= patient.tolerance:
        return failed(
            f"the score is the same for right and wrong prompts ({in_words(margins, patient.scale)}).",
            remedy="The prompt does not reach the score: is the tokenizer that of the model, are the weights of the "
            'text tower loaded? Where it is meant to be so, the card says blind_to=("prompt",).',
        )
    if win(-margins, patient.tolerance, share=_SHARE):
        return failed(
            observed,
            remedy="The score is upside down: the card's higher_is_better is wrong, or the answers of the head are "
            "exchanged. Steer with its negative.",
        )
    return failed(
        observed,
        remedy="Right and wrong prompts cannot be told apart: captions were shuffled, or tokenizer and weights are of "
        "different models. If the reward knows other images only, show it some: --image FILE --prompt TEXT.",
    )


PROMPT = Probe("Does an image get a better score with its own prompt than with another one?", _examine)
