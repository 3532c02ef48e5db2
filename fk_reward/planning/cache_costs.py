"""What a caching schedule saves, in operations of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fk_reward.pipelines.cache_schedule import CacheSchedule, Component
from fk_reward.pipelines.caching import cache_components, cache_schedule
from fk_reward.pipelines.hooks import main_denoiser, wrap_forward
from fk_reward.planning.costs import PROMPT
from fk_reward.planning.meta_device import Operations


@dataclass(frozen=True)
class CacheCosts:
    """Floating-point operations of one step of the denoiser, for one image, guidance included.

    A multiplication and an addition are two; normalisations, activations and sums are not counted.

    Attributes:
        step: of the whole step.
        components: of each part that can be cached.

    Example:
        >>> costs = CacheCosts(step=10, components={("0", "attn1"): 4, ("0", "ff"): 5})
        >>> schedule = CacheSchedule.every(costs.components, num_steps=4, interval=2)
        >>> costs.operations(schedule), costs.share(schedule)
        (22, 0.55)
    """

    step: int
    components: Mapping[Component, int]

    def operations(self, schedule: CacheSchedule) -> int:
        """Of a whole trajectory by a schedule."""
        rows = schedule.computed().steps
        saved = [
            self.components[component]
            for row in rows
            for component, computed in zip(schedule.components, row, strict=True)
            if not computed
        ]
        return len(rows) * self.step - sum(saved)

    def share(self, schedule: CacheSchedule) -> float:
        """Operations by a schedule, as a share of those without a cache; in (0, 1]."""
        return self.operations(schedule) / (schedule.num_steps * self.step)


@torch.no_grad()
def count_cache_costs(pipe: Any, **arguments: Any) -> CacheCosts:
    """Count the operations of a step, with the planner's counter, in one step of a plain call.

    Args:
        pipe: a pipeline of Diffusers, on any device; its weights are used.
        **arguments: of its call that change the costs, such as `guidance_scale`, `height` and `width`.

    Example:
        >>> from fk_reward import FKSteeringPipeline
        >>> pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-clipscore").pipe
        >>> pipe.set_progress_bar_config(disable=True)
        >>> costs = count_cache_costs(pipe, guidance_scale=3.0)
        >>> 0 < sum(costs.components.values()) < costs.step
        True
    """
    denoiser: Any = main_denoiser(pipe)
    layers = cache_components(denoiser)
    with cache_schedule(pipe, None), Operations() as operations, ExitStack() as stack:
        count = _Count(operations)
        for component, parts in layers.items():
            for part in parts:
                stack.enter_context(count.around(component, part))
        stack.enter_context(count.around(None, denoiser))
        call = {"prompt": PROMPT, "output_type": "latent", **arguments, "num_inference_steps": 1}
        pipe(**call)
    components = {component: count.found.get(component, 0) for component in layers}
    return CacheCosts(step=count.found[None], components=components)


@dataclass
class _Count:
    operations: Operations
    found: dict[Component | None, int] = field(default_factory=dict)

    def around(self, name: Component | None, module: nn.Module) -> Any:
        def call_and_count(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            before = self.operations.total
            output = forward(*args, **kwargs)
            self.found[name] = self.found.get(name, 0) + self.operations.total - before
            return output

        return wrap_forward(module, call_and_count)
