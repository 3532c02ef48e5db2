"""What a scheduler's step did: copies part, the clean sample is the predicted one, everything stays finite.

Schedulers are known by the name of their class, and a subclass may do anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


class FiniteWatch:
    """Remembers whether what passed by was finite, and reads it from the device only when it is asked.

    Args:
        scheduler: for the message.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> watch = FiniteWatch(DDIMScheduler())
        >>> watch.see("start", torch.zeros(2), step=0)
        >>> watch.see("denoiser", torch.tensor([0.0, torch.nan]), step=0)
        >>> watch.check()
        Traceback (most recent call last):
        ValueError: The denoiser's output at step 0 holds NaN or infinite values, ...
    """

    def __init__(self, scheduler: Any) -> None:
        name = type(scheduler).__name__
        half = "run the pipeline in float32 or bfloat16"
        self._messages = {
            "start": "The latents that came into step {step} hold NaN or infinite values: look at `latents`, or at "
            "what changes them between the steps.",
            "denoiser": "The denoiser's output at step {step} holds NaN or infinite values, which is the first place: "
            f"the denoiser (or its guidance) overflowed, {half}.",
            "prediction": "The predicted clean sample at step {step} holds NaN or infinite values, which is the first "
            f"place: latents and denoiser were finite. Look at the prediction_type of {name}, or {half}.",
            "scheduler": f"What {name} returned at step {{step}} holds NaN or infinite values, which is the first "
            "place: latents and denoiser were finite. Look at its settings (scheduler.config), and use another "
            "scheduler or number of steps.",
        }
        self._seen: list[tuple[str, int, Tensor]] = []

    def see(self, place: str, tensor: Any, *, step: int) -> None:
        """Take note of a tensor; anything else is ignored.

        Args:
            place: `"start"`, `"denoiser"`, `"prediction"` or `"scheduler"`.
            tensor: of any shape.
            step: index of the step.
        """
        if isinstance(tensor, Tensor):
            self._seen.append((place, step, torch.isfinite(tensor).all()))

    def check(self) -> None:
        """Look at all that was seen since the last check.

        Raises:
            ValueError: with the first place that was not finite, and what to do about it.
        """
        seen, self._seen = self._seen, []
        finite = torch.stack([flag.to(seen[-1][2].device) for *_, flag in seen]).tolist() if seen else []
        for (place, step, _), well in zip(seen, finite, strict=True):
            if not well:
                raise ValueError(self._messages[place].format(step=step))


@contextmanager
def bounded_variance(scheduler: Any, eta: float | None) -> Iterator[None]:
    """Keep a step of DDIM from adding more noise than the next level holds.

    From a level without signal (zero terminal SNR) DDIM at eta 1 replaces all the noise, and takes the square root of
    what is left: 0, or a rounding error below it, and NaN from there on. That depends on the betas, the number of steps
    and the processor (Stable Diffusion's with 25 steps are such). The variance is then lowered by single roundings
    until nothing is negative; where the stock step is finite, it is left alone to the last bit.

    Args:
        scheduler: any; all but DDIM are left alone.
        eta: of the step.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}
        >>> scheduler = DDIMScheduler(**settings, beta_schedule="scaled_linear", timestep_spacing="trailing")
        >>> scheduler.set_timesteps(30)
        >>> with bounded_variance(scheduler, 1.0):
        ...     moved = scheduler.step(torch.ones(1), scheduler.timesteps[0], torch.ones(1), eta=1.0).prev_sample
        >>> bool(moved.isfinite())
        True
    """
    if scheduler_name(scheduler) != "DDIMScheduler" or eta is None or not 0 < eta <= 1:
        yield
        return
    stock = scheduler._get_variance

    def bounded(timestep: Any, prev_timestep: Any) -> Tensor:
        variance = stock(timestep, prev_timestep)
        follows = scheduler.alphas_cumprod[prev_timestep] if prev_timestep >= 0 else scheduler.final_alpha_cumprod
        while 1 - follows - (eta * variance**0.5) ** 2 < 0:  # the expression of DDIM's own step
            variance = torch.nextafter(variance, torch.zeros_like(variance))
        return variance

    scheduler._get_variance = bounded
    try:
        yield
    finally:
        del scheduler._get_variance
