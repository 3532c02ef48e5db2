"""What a scheduler's step did. Schedulers are known by the name of their class, and a subclass may do anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fk_reward.sampling.x0_prediction import scheduler_name

_REPORTING = (
    *("CogVideoXDPMScheduler", "DDIMScheduler", "DDPMScheduler"),
    *("EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)
"""Schedulers whose step returns the predicted clean sample beside the next one."""


class CopiesCheck:
    """Sees to it that the copies of a particle part: a step without noise leaves them identical for ever.

    What is compared is the next sample of copies that went into the step with the same numbers. Where two are equal
    after the step that follows their resampling, one more step with noise is waited for (a scheduler may leave the
    noise out at times); then the run ends with an error. As long as all is well this reads one flag from the device at
    each step that resamples, and nothing at any other.

    Args:
        scheduler: for the message.
    """

    def __init__(self, scheduler: Any) -> None:
        self._name = type(scheduler).__name__
        self._known = scheduler_name(scheduler)
        self._pairs: list[tuple[int, int]] = []
        self._again = False
        self._num_missed = 0  # resamplings in a row whose step added no noise

    def begin(self, ancestors: Tensor) -> None:
        """Remember which rows of the batch are copies of one another.

        Args:
            ancestors: `(B',)` int64, the row from which each row of the batch comes.
        """
        first: dict[int, int] = {}
        places = enumerate(ancestors.tolist())
        self._pairs = [(first[row], place) for place, row in places if first.setdefault(row, place) != place]
        self._again = False

    def check(self, sample: Tensor, *, step: int, generator: Any = None) -> str | None:
        """Compare the copies after a step that should have added noise.

        Args:
            sample: `(B', C, ...)`, what the step returned.
            step: its index, for the message.
            generator: where the noise came from: one generator, or a list of one for each row.

        Returns:
            A sentence for the user where copies are equal because their generators are; None where all is well.

        Raises:
            ValueError: when copies are equal for the second time.
        """
        if not self._pairs:
            return None
        one, other = (sample[[pair[side] for pair in self._pairs]].flatten(1) for side in (0, 1))
        # The first time the copies went in with equal numbers, so that any difference is noise. The second time the
        # denoiser stands between, whose kernels may round two equal rows of a batch differently.
        limit = _tolerance(sample.dtype) * sample.float().std() if self._again else 0.0
        equal = ((one - other).abs().amax(dim=1) <= limit).tolist()
        pairs = [pair for pair, same in zip(self._pairs, equal, strict=True) if same]
        self._pairs = [pair for pair in pairs if not _same_source(generator, *pair)]
        self._num_missed = self._num_missed + 1 if self._pairs else 0
        if self._num_missed > 1:
            raise ValueError(self._message(step))
        self._again = True
        if len(pairs) > len(self._pairs):
            return "Generators of several particles are in the same state, so that copies of a particle stay equal."
        return None

    def _message(self, step: int) -> str:
        derived = "" if self._name == self._known else f" (which derives from {self._known})"
        return (
            f"Copies of a particle are still equal after step {step}: the step of {self._name}{derived} adds no noise, "
            f"so that they would stay identical for ever. Use {self._known} itself with a stochastic setting, or let "
            "the step of the subclass use eta and generator."
        )


def _same_source(generator: Any, one: int, other: int) -> bool:
    """Whether two rows have drawn the same noise, because the caller seeded their generators alike."""
    if not isinstance(generator, list | tuple) or max(one, other) >= len(generator):
        return False
    return torch.equal(generator[one].get_state(), generator[other].get_state())


def check_reported_x0(scheduler: Any, output: Any, x0_pred: Tensor) -> str | None:
    """Compare `x0_pred` with the predicted clean sample that the scheduler's own step reports.

    Args:
        scheduler: after its step.
        output: what the step returned.
        x0_pred: `(B, C, ...)`, our prediction for the samples that the step got.

    Returns:
        A sentence for the user where a subclass has a step of its own that cannot be checked; None where all is well.

    Raises:
        ValueError: where the two differ, and where a subclass of a scheduler that reports does not.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
        >>> x0_pred = torch.zeros(1, 3, 2, 2)
        >>> check_reported_x0(DDIMScheduler(), DDIMSchedulerOutput(x0_pred, pred_original_sample=x0_pred), x0_pred)
        >>> check_reported_x0(DDIMScheduler(), (x0_pred, x0_pred + 1), x0_pred)
        Traceback (most recent call last):
        ValueError: The step of DDIMScheduler reports another clean sample than DDIMScheduler would predict: ...
    """
    known, name = scheduler_name(scheduler), type(scheduler).__name__
    reported = reported_x0(scheduler, output)
    if reported is None:
        return _unreported(scheduler, known, name)
    if reported.shape == x0_pred.shape:
        scale = reported.abs().amax().clamp_min(1.0)
        # the clean sample may be wide where all that it is made of is in half precision, as the next sample is
        tolerance = max(_tolerance(tensor.dtype) for tensor in (reported, output[0]))
        if bool((reported - x0_pred).abs().amax() <= tolerance * scale):
            return None
    raise ValueError(
        f"The step of {name} reports another clean sample than {known} would predict: the rewards would be of the "
        f"wrong images. A subclass of {known} is read as {known} is; one that reads the model's output in another way "
        f"cannot be steered. Use {known} itself, with the prediction_type of the model."
    )


def reported_x0(scheduler: Any, output: Any) -> Tensor | None:
    """The predicted clean sample that a step reports, or keeps as its history; None where it does neither."""
    reported = getattr(output, "pred_original_sample", None)
    known = scheduler_name(scheduler) or ""
    if reported is None and known in _REPORTING and isinstance(output, tuple) and len(output) > 1:
        reported = output[1]
    if reported is None and "DPMSolver" in known and scheduler.config.algorithm_type.endswith("++"):
        reported = scheduler.model_outputs[-1]  # what the "++" variants convert the model's output into
    if known == "FlowMatchSDEScheduler" and scheduler._before is not None:
        reported = scheduler._before[0]  # kept for the next step
    return reported


def _unreported(scheduler: Any, known: str | None, name: str) -> str | None:
    original = next((cls for cls in reversed(type(scheduler).__mro__) if cls.__name__ == known), None)
    if original is None or type(scheduler).step is original.step:  # type: ignore[attr-defined]
        return None
    if known in _REPORTING:
        raise ValueError(
            f"{name} has a step of its own that does not report pred_original_sample, so that what it makes of the "
            f"model's output cannot be checked. Return it as {known} does, or use {known} itself."
        )
    return (
        f"{name} has a step of its own, which does not tell the clean sample that it predicts: the particles were "
        f"scored as those of {known} are."
    )


def _tolerance(dtype: torch.dtype) -> float:
    """Relative difference that rounding explains."""
    return 5e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-3
