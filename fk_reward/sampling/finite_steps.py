"""Steps stay finite; where one does not, the error names the place where it began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fk_reward.sampling.x0_prediction import scheduler_name


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
