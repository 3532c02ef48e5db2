"""The most memory that each phase of a call needs under any settings, and the settings that fit a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from fk_reward.planning.costs import PHASES, BatchCosts

_UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def parse_memory(amount: int | str | None) -> int | None:
    """Bytes of an amount.

    Args:
        amount: bytes, or a number with MB, GB (10⁹ bytes), MiB or GiB (2³⁰ bytes); None for no limit.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_memory("24GB"), parse_memory("0.5 GiB"), parse_memory(None)
        (24000000000, 536870912, None)
    """
    if amount is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(amount))
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match and match[2].upper() in _UNITS else 0
    if match and not match[2] and isinstance(amount, str) and 0 < size < 2**20:
        number = match[1]
        # As a string a small number is a forgotten unit; as an int it was computed.
        raise ValueError(f"memory {number} has no unit, and would be {number} bytes: write {number}GiB or {number}GB.")
    if size <= 0:
        raise ValueError(f"memory should be an amount such as 24GB, 24GiB or a number of bytes, got {amount!r}.")
    return size


def gigabytes(size: int) -> str:
    """Bytes in 10⁹, for people.

    Example:
        >>> gigabytes(24_510_000_000), gigabytes(1_200_000)
        ('24.5 GB', '0.0012 GB')
    """
    number = size / 1e9
    return f"{number:.1f} GB" if number >= 10 else f"{number:.2g} GB" if number < 1 else f"{number:.2f} GB"


CUDA_CONTEXT_BYTES = 800_000_000
"""Memory of a process on a GPU before its first tensor and for its libraries: the driver's context and the code of
kernels, some 500 MB on recent GPUs. An assumption on the safe side; PyTorch does not count it."""

ALLOCATOR_SHARE = 0.08
"""Added, as a share of the bytes above the weights, for blocks that the caching allocator cannot reuse, and for
workspaces of matrix products and convolutions, which exist inside an operation only. An assumption."""

LIMITED_PHASES = {
    "particle_batch_size": ("denoise",),
    "decode_batch_size": ("preview", "decode"),
    "reward_batch_size": ("preview reward", "reward"),
}
"""Setting -> phases whose batch it limits."""

GRADIENTS = ("preview gradient", "gradient")
"""Phases in which all particles are in one graph, whatever the batches."""


@dataclass(frozen=True)
class Settings:
    """Batch sizes and offloading of a call.

    Attributes:
        particle_batch_size: particles that go through the denoiser at once.
        decode_batch_size: images that are decoded at once, by the preview or the autoencoder.
        reward_batch_size: images that the reward sees at once.
        model_offload: `pipe.enable_model_cpu_offload()`: text encoders, denoiser and decoder come to the GPU in turn.
        reward_offload: `load_reward(..., offload=True)`: the reward rests on the CPU between its calls.
    """

    particle_batch_size: int
    decode_batch_size: int
    reward_batch_size: int
    model_offload: bool = False
    reward_offload: bool = False

    def batch_size(self, phase: str, num_images: int) -> int:
        """Images at once in a phase; the prompt is encoded for all at once."""
        names = [name for name, phases in LIMITED_PHASES.items() if phase in phases]
        return min([num_images, *(getattr(self, name) for name in names)])

    def keywords(self, num_particles: int) -> dict[str, int]:
        """Keywords of the pipeline's call; a batch of all particles needs none.

        Example:
            >>> Settings(2, 4, 4).keywords(4)
            {'particle_batch_size': 2}
        """
        return {name: getattr(self, name) for name in LIMITED_PHASES if getattr(self, name) < num_particles}


@dataclass(frozen=True)
class PhaseNeed:
    """Bytes on the GPU at the peak of a phase.

    Attributes:
        phase: its name.
        batch_size: images at once.
        weights: of all that is on the GPU in this phase.
        kept: of what all particles keep between the steps, and of decoded images.
        activations: of the phase itself, above its weights.
    """

    phase: str
    batch_size: int
    weights: int
    kept: int
    activations: int

    @property
    def peak(self) -> int:
        """The sum: what PyTorch's allocator holds at most."""
        return self.weights + self.kept + self.activations

    @property
    def needed(self) -> int:
        """The peak with what the GPU needs besides: `CUDA_CONTEXT_BYTES` and `ALLOCATOR_SHARE`."""
        return self.peak + CUDA_CONTEXT_BYTES + round(ALLOCATOR_SHARE * (self.kept + self.activations))


@dataclass(frozen=True)
class MemoryModel:
    """Memory of a steered call.

    Activations are the largest of several moments, each linear in the batch: a convex function. They are known for one
    image and for all; in between the chord is used, which is never below.

    Attributes:
        num_particles: the most particles at once.
        weights: bytes of `text`, `denoiser`, `decoder`, `other`, `preview` and `reward`.
        one: costs of one image.
        all: costs of as many images as there are particles at most.
        previewed: whether the scoring steps decode by the preview, and the autoencoder the finished images only.
        num_finished: particles at the end; None for `num_particles`. It counts where a phase happens at the end only.
        num_guided: the most particles of a guided step, whose gradient is taken; 0 without guided steps.
    """

    num_particles: int
    weights: dict[str, int]
    one: BatchCosts
    all: BatchCosts
    previewed: bool = False
    num_finished: int | None = None
    num_guided: int = 0

    @property
    def phases(self) -> tuple[str, ...]:
        """Those of `PHASES` that happen."""
        return tuple(phase for phase in PHASES if self._happens(phase))

    def _happens(self, phase: str) -> bool:
        by_preview = phase.startswith("preview")
        if phase in GRADIENTS:
            return self.num_guided > 0 and by_preview is self.previewed
        return self.previewed or not by_preview

    @property
    def keeps_denoiser(self) -> bool:
        """Whether with model offload the denoiser stays at the scoring steps: a tiny autoencoder offloads nothing."""
        return self.previewed and self.weights["preview"] > 0

    def need(self, phase: str, settings: Settings) -> PhaseNeed:
        """Bytes at the peak of one phase.

        Args:
            phase: one of `phases`.
            settings: how the call is made.
        """
        batch_size = settings.batch_size(phase, self._num_images(phase))
        low, high = self.one.activations[phase], self.all.activations[phase]
        return PhaseNeed(
            phase=phase,
            batch_size=batch_size,
            weights=self._resident(phase, settings),
            kept=self._kept(phase, batch_size),
            activations=between(low, high, at=batch_size, end=self.num_particles),
        )

    def needs(self, settings: Settings) -> tuple[PhaseNeed, ...]:
        """Bytes at the peak of each phase, in the order of `phases`."""
        return tuple(self.need(phase, settings) for phase in self.phases)

    def flops(self, phase: str, num_images: int) -> int:
        """Operations of a phase with so many images, in one batch or several."""
        return between(self.one.flops[phase], self.all.flops[phase], at=num_images, end=self.num_particles)

    def _num_images(self, phase: str) -> int:
        if phase in GRADIENTS:
            return self.num_guided
        at_the_end = self.previewed and phase in ("decode", "reward")
        return self.num_finished if at_the_end and self.num_finished is not None else self.num_particles

    def _kept(self, phase: str, batch_size: int) -> int:
        """Before the first step nothing is kept. A part of the images waits for the others, and is joined to them."""
        if phase == "text":
            return 0
        num_images = self._num_images(phase)
        size = (self.all.preview_bytes if phase.startswith("preview") else self.all.image_bytes) // self.num_particles
        images = size * num_images
        if phase in GRADIENTS:
            return self.all.kept  # the images are in the graph; the reward's copy of them is gone at its peak
        if phase.endswith("reward"):
            # At the end: the returned and the scored images, and no state of the loop any more.
            at_steps = 0 if self.previewed and phase == "reward" else self.all.kept + images
            at_the_end = 2 * images if phase == "reward" else 0
            return max(at_steps, at_the_end) + size * batch_size  # the reward gets a copy
        waiting = phase != "denoise" and batch_size < num_images
        return self.all.kept + (images if waiting else 0)

    def _resident(self, phase: str, settings: Settings) -> int:
        """Weights on the GPU."""
        here = self._offloaded(phase) if settings.model_offload else ("text", "denoiser", "decoder", "other")
        names = {*here, "preview"} if self.previewed and (phase != "text" or not settings.model_offload) else here
        scores = phase.endswith("reward") or phase in GRADIENTS
        reward = 0 if settings.reward_offload and not scores else self.weights["reward"]
        return reward + sum(self.weights[name] for name in names)

    def _offloaded(self, phase: str) -> tuple[str, ...]:
        """Of the pipeline with model offload: the decoder, once used, stays beside the denoiser and the reward.

        With a preview the reward of the finished images comes when the pipeline has taken everything away.
        """
        if phase == "text":
            return ("text",)
        if phase == "reward" and self.previewed:
            return ()
        if self.keeps_denoiser:
            return ("decoder",) if phase == "decode" else ("denoiser",)
        return ("denoiser", "decoder") if phase == "denoise" else ("decoder",)


def between(low: int, high: int, *, at: int, end: int) -> int:
    """The straight line through `low` at 1 and `high` at `end`, rounded up.

    Example:
        >>> between(10, 40, at=2, end=4), between(10, 10, at=1, end=1)
        (20, 10)
    """
    return high if end == 1 else low - (low - high) * (at - 1) // (end - 1)


def fitting_settings(
    model: MemoryModel, memory: int | None, *, can_offload_reward: bool, num_scorings: int
) -> Settings | None:
    """Find settings under which all phases fit into memory; None if nothing fits.

    Args:
        model: memory of the call.
        memory: bytes of the GPU; None for no limit.
        can_offload_reward: whether the reward can stay on the CPU between its calls.
        num_scorings: how often a call scores; with offload, weights are moved each time.
    """
    all_at_once = Settings(*(model.num_particles,) * 3)
    if memory is None:
        return all_at_once
    # Offloading costs time and smaller batches hardly do: the least traffic first, with the largest batches that fit.
    for modes in sorted(_modes(can_offload_reward), key=lambda mode: _moved_bytes(model, mode, num_scorings)):
        settings = _largest_batches(model, memory, replace(all_at_once, **modes))
        if settings is not None:
            return settings
    return None


def smallest_settings(*, can_offload_reward: bool) -> Settings:
    """Settings that need the least memory: one image at a time, everything offloaded.

    Example:
        >>> smallest_settings(can_offload_reward=False).model_offload
        True
    """
    return Settings(1, 1, 1, model_offload=True, reward_offload=can_offload_reward)


def _modes(can_offload_reward: bool) -> list[dict[str, bool]]:
    reward = (False, True) if can_offload_reward else (False,)
    return [{"model_offload": first, "reward_offload": second} for first in (False, True) for second in reward]


def _moved_bytes(model: MemoryModel, mode: dict[str, bool], num_scorings: int) -> int:
    """Bytes that are moved to the GPU in a call: the denoiser again after each scoring, the reward at each."""
    moved = 0
    if mode["model_offload"]:
        num_returns = 1 if model.keeps_denoiser else num_scorings
        moved += model.weights["text"] + model.weights["decoder"] + num_returns * model.weights["denoiser"]
    if mode["reward_offload"]:
        moved += num_scorings * model.weights["reward"]
    return moved


def _largest_batches(model: MemoryModel, memory: int, settings: Settings) -> Settings | None:
    """Find the largest batch of each phase by itself: phases do not overlap."""
    undivided = [phase for phase in ("text", *GRADIENTS) if phase in model.phases]
    if any(model.need(phase, settings).needed > memory for phase in undivided):
        return None
    for name, limited in LIMITED_PHASES.items():
        phases = [phase for phase in limited if phase in model.phases]
        for size in range(model.num_particles, 0, -1):
            sized: dict[str, Any] = {name: size}
            settings = replace(settings, **sized)
            if all(model.need(phase, settings).needed <= memory for phase in phases):
                break
        else:
            return None
    return settings
