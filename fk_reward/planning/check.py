"""Whether a plan is right: the call is made on a GPU with random weights, and the allocator's peak compared."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import torch

from fk_reward.benchmarks.full_size_pipelines import FULL_SIZE_PIPELINES
from fk_reward.benchmarks.full_size_rewards import FULL_SIZE
from fk_reward.benchmarks.speed_measure import peak_memory
from fk_reward.pipelines import FKSteeringPipeline
from fk_reward.planning.costs import PROMPT
from fk_reward.planning.planner import Plan
from fk_reward.rewards import Reward, load_reward

_NUM_STEPS = 4
_TOLERANCE = 0.15


@dataclass(frozen=True)
class Check:
    """A prediction and what was measured.

    Attributes:
        predicted: `Plan.peak`, bytes.
        measured: `torch.cuda.max_memory_allocated` of a call, bytes.
        seconds: of that call, its steps scaled to those of the plan; what is outside the steps is scaled, too.
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
        TypeError: for a plan in batches that this version's pipeline cannot make.
    """
    if not torch.cuda.is_available():
        raise ValueError("A plan is checked on a GPU, and PyTorch sees none here.")
    if not plan.fits:
        raise ValueError("A plan that does not fit cannot be checked; give it more memory.")
    pipe = _pipeline(plan)
    arguments = plan.picture.arguments() | plan.settings.keywords(plan.num_particles)

    def run() -> None:
        pipe(PROMPT, num_particles=plan.num_particles, num_inference_steps=_NUM_STEPS, **arguments)

    device = torch.device("cuda")
    gc.collect()
    torch.cuda.empty_cache()
    measured = peak_memory(run, device)
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) * plan.steps / _NUM_STEPS
    return Check(predicted=plan.peak, measured=measured or 0, seconds=seconds)


def _pipeline(plan: Plan) -> FKSteeringPipeline:
    """The pipeline as the plan wants it on the GPU, of random weights where those of the model are not at hand."""
    dtype = getattr(torch, plan.dtype)
    reward = _reward(plan)
    if plan.model in FULL_SIZE_PIPELINES:
        place = "cpu" if plan.settings.model_offload else "cuda"
        pipe = FKSteeringPipeline(FULL_SIZE_PIPELINES[plan.model].make(device=place, dtype=dtype), reward=reward)
    else:
        pipe = FKSteeringPipeline.from_pretrained(plan.model, reward=reward, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if plan.settings.model_offload:
        pipe.enable_model_cpu_offload()
        return pipe
    return pipe.to("cuda")


def _reward(plan: Plan) -> Reward:
    if plan.reward not in FULL_SIZE:
        return load_reward(plan.reward).to("cuda")
    reward = FULL_SIZE[plan.reward].make(device="cpu" if plan.settings.reward_offload else "cuda")
    if plan.settings.reward_offload:
        reward.offload = True
    return reward.to("cuda")
