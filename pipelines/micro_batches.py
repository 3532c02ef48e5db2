"""Denoiser, decoder and reward of one call, run on a few particles at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fk_reward.pipelines.batch_layout import BatchLayout, batch_rows
from fk_reward.pipelines.batch_limit import BatchLimit
from fk_reward.pipelines.batch_sizes import BatchSizes, batch_size_fields
from fk_reward.pipelines.denoisers import find_denoisers
from fk_reward.pipelines.pipeline_state import stateful_hooks
from fk_reward.pipelines.replacement import call_name, replaced
from fk_reward.pipelines.rest_of_call import DecodeFn
from fk_reward.rewards import Reward


class MicroBatches:
    """Splits the work of one steered call into batches.

    Args:
        sizes: what was asked for.
        num_particles: tells how many particles of all prompts there are at the moment.
        found: sizes at which "auto" arrived in earlier calls, by field; updated.
    """

    def __init__(self, sizes: BatchSizes, *, num_particles: Callable[[], int], found: dict[str, int]) -> None:
        self._num_particles = num_particles
        self._particles, self._decodes, self._rewards = (
            BatchLimit(name, getattr(sizes, name), found=found) for name in batch_size_fields()
        )

    @contextmanager
    def splitting(self, pipe: Any) -> Iterator[None]:
        """Split every forward pass of the pipeline's denoiser (and ControlNet) and every `vae.decode` inside the block.

        Raises:
            ValueError: for a pipeline whose denoiser is not known, or keeps a cache from one call to the next.
        """
        with ExitStack() as stack:
            if self._particles.limits:
                for denoiser in _denoisers(pipe):
                    stack.enter_context(replaced(denoiser, call_name(denoiser), self._denoise))
            vae = getattr(pipe, "vae", None)
            if self._decodes.limits and vae is not None:
                stack.enter_context(replaced(vae, "decode", self._decode))
            yield

    def decoder(self, decode: DecodeFn) -> DecodeFn:
        """The same decoder for any number of latents, a batch at a time."""
        if not self._decodes.limits:
            return decode
        return functools.partial(self._decode, decode)

    def decoded_together(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Latents `(B, ...)` in the batches in which they are decoded."""
        return latents.split(self._decodes.size(len(latents)))

    def score(self, reward: Reward, images: Tensor, prompts: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `reward.score_with_parts` gives, a batch at a time."""

        def scores(size: int) -> tuple[Tensor, dict[str, Tensor]]:
            with reward.limited_to(size):
                return reward.score_with_parts(images, prompts)

        if not self._rewards.limits:
            return reward.score_with_parts(images, prompts)
        return self._rewards.run(min(reward.batch_size or len(images), len(images)), scores)

    def _denoise(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        num_rows = batch_rows(args, kwargs)
        if num_rows == 0:
            raise ValueError(
                "The denoiser is called without a tensor of rows, so that particle_batch_size cannot split its batch; "
                "leave it out."
            )
        layout = BatchLayout.of(num_rows, num_particles=self._num_particles())
        return _split_call(self._particles, layout, call, (args, kwargs))

    def _decode(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layout = BatchLayout(1, batch_rows(args, kwargs))
        return _split_call(self._decodes, layout, call, (args, kwargs))


def _split_call(limit: BatchLimit, layout: BatchLayout, call: Callable[..., Any], arguments: tuple[Any, Any]) -> Any:
    args, kwargs = arguments

    def run(size: int) -> Any:
        if size == layout.num_particles:
            return call(*args, **kwargs)
        parts = [(start, min(start + size, layout.num_particles)) for start in range(0, layout.num_particles, size)]
        return layout.join([call(*layout.take(args, *part), **layout.take(kwargs, *part)) for part in parts])

    return limit.run(layout.num_particles, run)


def _denoisers(pipe: Any) -> list[nn.Module]:
    found = find_denoisers(pipe)
    if not found:
        raise ValueError(
            f"{type(pipe).__name__} has no unet and no transformer, so particle_batch_size splits nothing."
        )
    for module in found:
        caches = [type(hook).__name__ for hook in stateful_hooks(module)]
        if caches or getattr(module, "is_cache_enabled", False):
            name = caches[0] if caches else "enable_cache"
            raise ValueError(
                f"{type(module).__name__} keeps a cache from one call to the next ({name}), which micro-batches would "
                "mix up: call its disable_cache(), or leave particle_batch_size out."
            )
    return found
