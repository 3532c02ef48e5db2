"""Is the gradient that the card promises there?"""

from __future__ import annotations

import torch

from fk_reward.rewards.doctor.findings import Finding, failed, not_applicable, passed
from fk_reward.rewards.doctor.patient import Patient, Probe


def _examine(patient: Patient) -> Finding:
    reward = patient.reward
    if not reward.card.differentiable:
        return not_applicable("its card promises none.")
    if reward.compares_images or getattr(reward, "offload", False):
        return not_applicable("it compares images, or its weights are on the CPU between calls.")
    image = patient.specimens.images[:1].to(reward.device).requires_grad_()
    with torch.enable_grad():
        score = reward(image, [patient.specimens.prompts[0]])
        if not score.requires_grad:
            return failed(
                "the score does not depend on the image for autograd.",
                remedy="Something detaches it: no_grad, .detach(), PIL or NumPy on the way. Otherwise "
                "differentiable=False in the card.",
            )
        (gradient,) = torch.autograd.grad(score.sum(), image)
    largest = gradient.abs().max().item()
    if gradient.isfinite().all() and largest > 0:
        return passed(f"finite, {largest:.2g} at most.")
    return failed(
        "it is zero everywhere." if largest == 0 else "it is not finite.",
        remedy="Rounding or clamping on the way to the score; in half precision, an overflow: load it in float32.",
    )


GRADIENT = Probe("Is there a gradient to the image, if the card promises one?", _examine)
