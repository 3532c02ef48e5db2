"""Check a plan: make the call on a GPU with random weights, and compare the allocator's peak."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fk_reward.pipelines import FKSteeringPipeline
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.planning.costs import PROMPT
from fk_reward.planning.planned_models import sized_preview, steered_pipeline
from fk_reward.planning.planner import Plan

_NUM_STEPS = 4
_TOLERANCE = 0.15


@dataclass(frozen=True)
class Check:
    """A prediction and what was measured.

    Attributes:
        predicted: `Plan.peak`, bytes.
        measured: `torch.cuda.max_memory_allocated` of a call, bytes.
        seconds: of that call, scaled from its steps to those of the plan, the time outside the steps included.
    """

    predicted: int
    measured: int
    seconds: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1.

        Example:
            >>> round(Check(predicted=110, measured=100, seconds=1.0).error, 6)
            0.1
        """
        return self.predicted / self.measured - 1

    @property
    def is_right(self) -> bool:
        """Whether the prediction is within 15 per cent."""
        return abs(self.error) <= _TOLERANCE


def check_plan(plan: Plan) -> Check:
    """Make the call of a plan on the GPU, with few steps, and compare.

    Args:
        plan: one that fits the GPU at hand.

    Raises:
        ValueError: without a GPU, or for a plan that does not fit.
        TypeError: a plan in batches that this version's pipeline cannot make.
    """
    if not torch.cuda.is_available():
        raise ValueError("A plan is checked on a GPU, and PyTorch sees none here.")
    if not plan.fits:
        raise ValueError("A plan that does not fit cannot be checked; give it more memory.")
    pipe = _pipeline(plan)
    arguments = plan.image.arguments() | plan.settings.keywords(plan.max_particles)

    def run() -> None:
        pipe(PROMPT, search=plan.search, num_inference_steps=_NUM_STEPS, **arguments)

    device = torch.device("cuda")
    gc.collect()  # what making the models left behind is not of the call
    torch.cuda.empty_cache()
    measured = peak_memory(run, device)
    started = time.perf_counter()  # of the second call: the first has warmed up
    run()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) * plan.steps / _NUM_STEPS
    return Check(predicted=plan.peak, measured=measured or 0, seconds=seconds)


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Execute a run and return the most bytes that PyTorch's allocator held in it, the weights included.

    Returns:
        None on other devices than CUDA, where PyTorch does not count them.

    Example:
        >>> peak_memory(lambda: None, torch.device("cpu")) is None
        True
    """
    if device.type != "cuda":
        run()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _pipeline(plan: Plan) -> FKSteeringPipeline:
    """The pipeline as the plan wants it on the GPU, of random weights where their size is known."""
    dtype = getattr(torch, plan.dtype)
    pipe = steered_pipeline(
        plan.model,
        reward=plan.reward,
        device="cuda",
        dtype=dtype,
        model_offload=plan.settings.model_offload,
        reward_offload=plan.settings.reward_offload,
    )
    pipe.preview = sized_preview(plan.preview, pipe.pipe, device="cuda", dtype=dtype)
    pipe.solver, pipe.lookahead = resolve_solver(plan.solver), plan.lookahead
    return pipe
