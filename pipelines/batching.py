"""How much of a call the denoiser, the decoder and the reward take at once, and how a batch is split."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fk_reward.pipelines.batch_sizes import BatchSizes, batch_size_fields
from fk_reward.pipelines.epilogue import DecodeFn
from fk_reward.pipelines.hooks import find_denoisers, wrap_forward, wrap_method
from fk_reward.pipelines.pipeline_state import stateful_hooks
from fk_reward.rewards import Reward
from fk_reward.smc.reward_scale import AUTO

logger = logging.getLogger(__name__)


T = TypeVar("T")


class BatchLimit:
    """How much one stage takes at once: a number, everything, or what turns out to fit.

    Args:
        name: the field of `BatchSizes`.
        size: its value: None for everything at once, at least 1, or "auto".
        found: sizes at which "auto" arrived, by name: read, and written when memory runs out, so that a later call
            begins where this one ended.

    Example:
        >>> limit = BatchLimit("decode_batch_size", 3, found={})
        >>> limit.run(7, lambda size: size), limit.run(2, lambda size: size)
        (3, 2)
    """

    def __init__(self, name: str, size: int | str | None, *, found: dict[str, int]) -> None:
        self._name = name
        self._asked = size
        self._found = found

    @property
    def limits(self) -> bool:
        """Whether there is anything to do: False where everything is wanted at once."""
        return self._asked is not None

    def size(self, total: int) -> int:
        """How much of `total` is taken at once."""
        size = self._found.get(self._name) if self._asked == AUTO else self._asked
        return total if size is None else min(int(size), total)

    def run(self, total: int, run_in_batches: Callable[[int], T]) -> T:
        """Call a function with the size of its batches, at most `total`.

        With "auto" it is called again with half of that for as long as memory runs out.

        Raises:
            torch.OutOfMemoryError: with a fixed size, and with "auto" when one at a time is too much.
        """
        while True:
            size = self.size(total)
            try:
                return run_in_batches(size)
            except torch.OutOfMemoryError:
                if self._asked != AUTO or size <= 1:
                    raise
            # only outside `except` does nothing refer to the tensors of the failed attempt any more
            self._halve(size)

    def _halve(self, size: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self._found[self._name] = size // 2
        logger.warning('%s="auto": %d at once are more than memory holds, now %d.', self._name, size, size // 2)


POSITIONS = ("img_ids", "txt_ids", "image_rotary_emb", "visual_rope_pos", "text_rope_pos")
"""Arguments that all rows share: tables of positions, whose first side may equal the batch by chance."""


@dataclass(frozen=True)
class BatchLayout:
    """Where the particles stand in a batch: `num_blocks` times the same particles, one block after the other.

    Diffusers' guidance makes such blocks: two of them (unconditional, conditional), three with perturbed attention.
    A part of the batch holds the rows of its particles in every block, so that it is the batch that the pipeline
    would have sent with that many particles, and attention processors that split it into its blocks still can.

    Attributes:
        num_blocks: 1 without guidance.
        num_particles: of one block.

    Example:
        >>> layout = BatchLayout.of(6, num_particles=3)
        >>> layout.take(torch.arange(6), 1, 3)
        tensor([1, 2, 4, 5])
        >>> layout.join([torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5])])
        tensor([0, 1, 2, 3, 4, 5])
    """

    num_blocks: int
    num_particles: int

    @classmethod
    def of(cls, num_rows: int, *, num_particles: int) -> BatchLayout:
        """The layout of a batch of the particles of a call; of a batch that does not hold them evenly, its rows."""
        blocks, rest = divmod(num_rows, num_particles)
        return cls(blocks, num_particles) if rest == 0 else cls(1, num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.num_blocks * self.num_particles

    def take(self, value: Any, start: int, stop: int, *, name: str = "") -> Any:
        """The part of particles `start` to `stop` (exclusive) of an argument.

        Args:
            value: tensors `(num_rows, ...)`, also inside mappings, lists and tuples. Everything else is shared by all
                particles and stays as it is: other tensors, numbers, None.
            start: first particle.
            stop: behind the last one.
            name: of the argument, by which `POSITIONS` are known.
        """
        return self._of_blocks(value, lambda blocks: blocks[:, start:stop], name)

    def resize(self, value: Any, num_particles: int) -> Any:
        """An argument for another number of particles: the first ones, or all of them and again from the first.

        Example:
            >>> BatchLayout(1, 2).resize(torch.tensor([5, 6]), 3)
            tensor([5, 6, 5])
        """
        places = [place % self.num_particles for place in range(num_particles)]
        return self._of_blocks(value, lambda blocks: blocks[:, places], "")

    def block(self, value: Any, place: int) -> Any:
        """One of the blocks of an argument.

        Example:
            >>> BatchLayout(2, 2).block({"t": torch.tensor([0, 1, 2, 3])}, 1)
            {'t': tensor([2, 3])}
        """
        return self._of_blocks(value, lambda blocks: blocks[place : place + 1], "")

    def _of_blocks(self, value: Any, pick: Callable[[Tensor], Tensor], name: str) -> Any:
        """An argument with what is picked of each of its tensors `(num_blocks, num_particles, ...)`."""
        if isinstance(value, Tensor):
            if not self._has_rows(value, name):
                return value
            return pick(value.unflatten(0, (self.num_blocks, self.num_particles))).flatten(0, 1)
        if isinstance(value, Mapping):
            return {key: self._of_blocks(item, pick, key) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._of_blocks(item, pick, name) for item in value)
        return value

    def join(self, parts: Sequence[Any]) -> Any:
        """The output of the undivided batch from the outputs of its parts, which are in order.

        Args:
            parts: tensors, or mappings (Diffusers' `BaseOutput`), lists or tuples of them; of anything else the first.

        Raises:
            ValueError: when the tensors do not add up to the rows of the batch.
        """
        first = parts[0]
        if isinstance(first, Tensor):
            return self._joined(parts)
        if isinstance(first, Mapping):
            return type(first)(**{key: self.join([part[key] for part in parts]) for key in first})
        if isinstance(first, list | tuple):
            return type(first)(self.join(items) for items in zip(*parts, strict=True))
        return first

    def _has_rows(self, value: Tensor, name: str) -> bool:
        if name in POSITIONS and value.ndim < 3:
            return False
        return value.ndim > 0 and len(value) == self.num_rows

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        rows = [len(part) if part.ndim else 0 for part in parts]
        if sum(rows) != self.num_rows or any(count % self.num_blocks for count in rows):
            raise ValueError(
                f"Micro-batches of a batch of {self.num_rows} rows gave outputs of {rows} rows, which do not add up: "
                "this model cannot be run in micro-batches."
            )
        return torch.cat([part.unflatten(0, (self.num_blocks, -1)) for part in parts], dim=1).flatten(0, 1)


def batch_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch that a model is called with: of its first tensor of two or more dimensions, 0 without one.

    Example:
        >>> batch_rows((torch.zeros(4, 3), torch.tensor(1.0)), {})
        4
    """
    return next((len(value) for value in _tensors(args, kwargs) if value.ndim > 1), 0)


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


class MicroBatches:
    """Splits the work of one steered call into batches.

    Args:
        sizes: what was asked for.
        num_particles: returns the number of particles of all prompts at the moment.
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
                    stack.enter_context(wrap_forward(denoiser, self._denoise))
            vae = getattr(pipe, "vae", None)
            if self._decodes.limits and vae is not None:
                stack.enter_context(wrap_method(vae, "decode", self._decode))
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
