"""A search around a sampling loop that is no pipeline of Diffusers: ComfyUI's, a modular pipeline's, one of your own.

`fk_reward.sampling.steering.steer` knows latents and rewards. This adds what stands around it in every loop that makes
images: the search by its name, the images of predicted samples, the finished ones, and the choice among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from fk_reward.pipelines.call_budget import choose_search
from fk_reward.rewards.base import Reward
from fk_reward.rewards.registry import load_reward
from fk_reward.sampling.steering import steer
from fk_reward.search.base import LONG_RUN, SearchConfig, needs_noise
from fk_reward.search.budget import resized
from fk_reward.search.contract import config_for_spread, make_population, selected_images
from fk_reward.search.diversity import DIVERSE, diverse_groups
from fk_reward.search.moves import MovingSearch
from fk_reward.search.registry import SEARCHES, SearchLoadError, load_search, search_name
from fk_reward.search.starts import StartSearch
from fk_reward.smc.resampling import flat_indices
from fk_reward.value_checks import whole_number

Decode = Callable[[Tensor], Tensor]
"""Clean samples `(B, C, ...)` to images `(B, 3, H, W)` in [0, 1]."""


@dataclass(frozen=True, eq=False)
class LoopResult:
    """What a steered loop leaves.

    Attributes:
        rows: `(G * n,)` int64, the chosen ones among the finished samples, best first for each prompt.
        samples: `(G * n, C, ...)`, these.
        rewards: `(G, n)` float32 on the CPU, in the same order.
    """

    rows: Tensor
    samples: Tensor
    rewards: Tensor


class SteeredLoop:
    """One run of a search inside a sampling loop.

    Args:
        search: a name of `SEARCHES`, or a config. One that draws whole trajectories again or moves its particles itself
            is refused: a loop runs once, and by its own steps.
        reward: a name, a `Reward`, or a function of images and prompts.
        prompts: G texts for the reward.
        decode: clean samples `(B, C, ...)` to images `(B, 3, H, W)` in [0, 1].
        num_particles: K, where the loop's batch decides that; None for what the search has.
        num_images: n, how many of the finished samples `finish` chooses for each prompt.
        generators: the search's own randomness, on the CPU: one, or one for each prompt.
        **settings: fields of the search's config.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an unknown search, or one that cannot run inside a loop.

    Example:
        >>> from diffusers import EulerAncestralDiscreteScheduler
        >>> scheduler = EulerAncestralDiscreteScheduler()
        >>> scheduler.set_timesteps(6)
        >>> loop = SteeredLoop("fk", lambda images, prompts: images.mean((1, 2, 3)), ["bright"], torch.sigmoid,
        ...                    generators=torch.Generator().manual_seed(0), reward_scale=4.0)
        >>> noise = torch.Generator().manual_seed(1)
        >>> sample = torch.randn(4, 3, 2, 2, generator=noise) * scheduler.init_noise_sigma
        >>> with loop.steering(scheduler) as records:
        ...     for t in scheduler.timesteps:
        ...         model_input = scheduler.scale_model_input(sample, t)
        ...         sample = scheduler.step(0.9 * model_input, t, sample, generator=noise).prev_sample
        >>> best = loop.finish(sample)
        >>> [record.step for record in records], tuple(best.samples.shape)
        ([2, 3, 4], (1, 3, 2, 2))
    """

    def __init__(
        self,
        search: str | SearchConfig,
        reward: Any,
        prompts: Sequence[str],
        decode: Decode,
        *,
        num_particles: int | None = None,
        num_images: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        **settings: Any,
    ) -> None:
        self.reward: Reward = load_reward(reward)
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self.num_images = whole_number("num_images", num_images, minimum=1)
        self.config = _chosen(search, dict(settings), num_particles=num_particles, num_images=num_images)
        spread = self.reward.card.spread
        self.config = config_for_spread(self.config, spread)
        self._decode = decode
        self.population = make_population(self.config, len(self.prompts), generators, spread=spread)
        if self.num_images > (finished := self.population.forecast(LONG_RUN).finished):
            raise ValueError(f"num_images should be at most {finished}, what the search finishes, got {num_images}.")

    @property
    def needs_noise(self) -> bool:
        """Whether the steps of the loop must add noise, because particles are copied."""
        return needs_noise(self.config)

    def score(self, samples: Tensor) -> Tensor:
        """Rewards `(B,)` of clean samples `(B, C, ...)`, of the particles that there are now.

        Raises:
            ValueError: where `decode` makes another number of images, such as the frames of a video.
        """
        images = self._decode(samples)
        if len(images) != len(samples):
            raise ValueError(f"decode should make one image of each of {len(samples)} samples, got {len(images)}.")
        each = len(samples) // len(self.prompts)
        return self.reward(images, [prompt for prompt in self.prompts for _ in range(each)])

    def steering(self, scheduler: Any, **options: Any) -> AbstractContextManager[Any]:
        """`steer` for this run: a context around the loop, which yields the records.

        Args:
            scheduler: of Diffusers' interface, whose `step` the loop calls.
            **options: of `fk_reward.sampling.steering.steer`.
        """
        return steer(scheduler, self.population, self.score, **options)

    def finish(self, samples: Tensor) -> LoopResult:
        """Score the finished samples, correct the weights, and choose.

        Args:
            samples: `(G * K', C, ...)`, as the loop left them.
        """
        rewards = self.score(samples)
        self.population.finish(rewards)
        kept = rewards.detach().to("cpu", torch.float32)
        chosen = selected_images(self.population, self.num_images)
        if self.num_images > 1 and getattr(self.config, "selection", None) == DIVERSE:
            grouped, weight = kept.view(len(self.prompts), -1), getattr(self.config, "diversity_weight", 1.0)
            chosen, _ = diverse_groups(grouped, samples.detach(), chosen, angular=False, weight=weight)
        rows = flat_indices(chosen, self.population.num_particles)
        return LoopResult(rows, samples[rows.to(samples.device)], kept[rows].view(chosen.shape))


def loop_searches() -> tuple[str, ...]:
    """Names of the searches that run inside a loop, those of other packages too.

    Example:
        >>> loop_searches()[:3]
        ('beam', 'best-of-n', 'fk')
    """
    return tuple(name for name in sorted(SEARCHES) if _runs_in_a_loop(name))


def _runs_in_a_loop(name: str) -> bool:
    try:
        config = load_search(name)
    except SearchLoadError:  # of another package; whoever names it is told why
        return False
    return not isinstance(config, StartSearch | MovingSearch)


def _chosen(
    search: str | SearchConfig, settings: dict[str, Any], *, num_particles: int | None, num_images: int
) -> SearchConfig:
    choice = choose_search(load_search(search), settings, num_images=num_images)
    config = choice.config
    if isinstance(config, StartSearch | MovingSearch):
        why = "draws whole trajectories" if isinstance(config, StartSearch) else "moves its particles itself"
        raise ValueError(
            f"{search_name(config)} {why}, which a loop that runs once by its own steps cannot do: use a pipeline, or "
            f"one of {', '.join(loop_searches())}."
        )
    if num_particles is not None and num_particles != config.num_particles:
        config = resized(config, num_particles)
    return replace(choice, config=config).with_settings(settings)
