"""Denoisers of a population that shrinks: what the pipeline prepared for all particles, cut down to those left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fk_reward.pipelines.batch_layout import BatchLayout, batch_rows
from fk_reward.pipelines.denoisers import find_denoisers
from fk_reward.pipelines.replacement import call_name, replaced
from fk_reward.smc.particle_filter import ParticleFilter


@contextmanager
def survivors_only(pipe: Any, particle_filter: ParticleFilter) -> Iterator[None]:
    """Cut the conditions of each call of the denoiser to the size of its sample, inside the block.

    A pipeline prepares text embeddings, time ids and the like once, for K particles of each prompt. When only K' are
    left, the samples have fewer rows. The conditions of a prompt are the same for all of its particles, so that any
    K' of their rows will do.

    Args:
        pipe: the wrapped pipeline.
        particle_filter: of the call; K' is its `num_particles`.

    Raises:
        ValueError: for a pipeline whose denoiser is not known.
    """
    denoisers = find_denoisers(pipe)
    if not denoisers:
        raise ValueError(f"{type(pipe).__name__} has no unet and no transformer: final_particles cannot be had.")
    first = particle_filter.num_particles

    def call_with_survivors(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        left = particle_filter.num_particles
        if left == first:
            return call(*args, **kwargs)
        layout = BatchLayout(batch_rows(args, kwargs) // left, first)
        return call(*layout.take(args, 0, left), **layout.take(kwargs, 0, left))

    with ExitStack() as stack:
        for denoiser in denoisers:
            stack.enter_context(replaced(denoiser, call_name(denoiser), call_with_survivors))
        yield
