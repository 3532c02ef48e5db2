"""From the costs of batches to the most memory that each phase of a call needs, under any settings."""

from __future__ import annotations

from dataclasses import dataclass

from fk_reward.planning.costs import PHASES, BatchCosts

CUDA_CONTEXT_BYTES = 800_000_000
"""What a process takes on a GPU before its first tensor and for its libraries: the driver's context and the code of
kernels, some 500 MB on recent GPUs. An assumption on the safe side; PyTorch does not count it."""

ALLOCATOR_SHARE = 0.08
"""Of the bytes above the weights, what is added for blocks that the caching allocator cannot reuse, and for workspaces
of matrix products and convolutions, which live inside an operation and are not seen. An assumption."""

LIMITED_PHASES = {
    "particle_batch_size": ("denoise",),
    "decode_batch_size": ("preview", "decode"),
    "reward_batch_size": ("preview reward", "reward"),
}
"""Setting -> phases whose batch it limits."""


@dataclass(frozen=True)
class Settings:
    """How a call is to be made.

    Attributes:
        particle_batch_size: particles that go through the denoiser at once.
        decode_batch_size: pictures that are decoded at once, by the preview or the autoencoder.
        reward_batch_size: pictures that the reward sees at once.
        model_offload: `pipe.enable_model_cpu_offload()`: text encoders, denoiser and decoder come to the GPU in turn.
        reward_offload: `load_reward(..., offload=True)`: the reward rests on the CPU between its calls.
    """

    particle_batch_size: int
    decode_batch_size: int
    reward_batch_size: int
    model_offload: bool = False
    reward_offload: bool = False

    def batch_size(self, phase: str, num_pictures: int) -> int:
        """Pictures at once in a phase; the prompt is encoded for all at once."""
        names = [name for name, phases in LIMITED_PHASES.items() if phase in phases]
        return min([num_pictures, *(getattr(self, name) for name in names)])

    def keywords(self, num_particles: int) -> dict[str, int]:
        """Keywords of the pipeline's call; a batch of all particles needs none.

        Example:
            >>> Settings(2, 4, 4).keywords(4)
            {'particle_batch_size': 2}
        """
        return {name: getattr(self, name) for name in LIMITED_PHASES if getattr(self, name) < num_particles}


@dataclass(frozen=True)
class PhaseNeed:
    """Bytes on the GPU at the peak of one phase.

    Attributes:
        phase: its name.
        batch_size: pictures at once.
        weights: of all that is on the GPU in this phase.
        kept: of what all particles keep between the steps, and of decoded pictures.
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
    """Memory of a steered call of K particles.

    Activations grow with the batch by pieces of straight lines that bend upwards, being the largest of several moments.
    They are known for one picture and for all K; between them the chord is taken, which is never below.

    Attributes:
        num_particles: K.
        weights: bytes of `text`, `denoiser`, `decoder`, `other`, `preview` and `reward`.
        one: costs of one picture.
        all: costs of K pictures.
        previewed: whether the scoring steps decode by the preview, and the autoencoder the finished pictures only.
        num_finished: K', particles at the end; None for K. A population is largest in the beginning, so that it counts
            where a phase happens at the end only.
    """

    num_particles: int
    weights: dict[str, int]
    one: BatchCosts
    all: BatchCosts
    previewed: bool = False
    num_finished: int | None = None

    @property
    def phases(self) -> tuple[str, ...]:
        """Those of `PHASES` that happen."""
        return tuple(phase for phase in PHASES if self.previewed or not phase.startswith("preview"))

    @property
    def keeps_denoiser(self) -> bool:
        """Whether with model offload the denoiser stays at the scoring steps: a tiny autoencoder sends nothing away."""
        return self.previewed and self.weights["preview"] > 0

    def need(self, phase: str, settings: Settings) -> PhaseNeed:
        """Bytes at the peak of one phase.

        Args:
            phase: one of `phases`.
            settings: how the call is made.
        """
        batch_size = settings.batch_size(phase, self._num_pictures(phase))
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

    def flops(self, phase: str, num_pictures: int) -> int:
        """Operations of a phase with so many pictures, in one batch or several."""
        return between(self.one.flops[phase], self.all.flops[phase], at=num_pictures, end=self.num_particles)

    def _num_pictures(self, phase: str) -> int:
        at_the_end = self.previewed and phase in ("decode", "reward")
        return self.num_finished if at_the_end and self.num_finished is not None else self.num_particles

    def _kept(self, phase: str, batch_size: int) -> int:
        """Before the first step nothing is kept. A part of the pictures waits for the others, and is joined to them."""
        if phase == "text":
            return 0
        num_pictures = self._num_pictures(phase)
        size = (self.all.preview_bytes if phase.startswith("preview") else self.all.image_bytes) // self.num_particles
        images = size * num_pictures
        if phase.endswith("reward"):
            # at the end the images that are returned and those that are scored, and no state of the loop any more
            at_steps = 0 if self.previewed and phase == "reward" else self.all.kept + images
            at_the_end = 2 * images if phase == "reward" else 0
            return max(at_steps, at_the_end) + size * batch_size  # the reward gets a copy
        waiting = phase != "denoise" and batch_size < num_pictures
        return self.all.kept + (images if waiting else 0)

    def _resident(self, phase: str, settings: Settings) -> int:
        """Weights on the GPU."""
        here = self._offloaded(phase) if settings.model_offload else ("text", "denoiser", "decoder", "other")
        names = {*here, "preview"} if self.previewed and (phase != "text" or not settings.model_offload) else here
        reward = 0 if settings.reward_offload and not phase.endswith("reward") else self.weights["reward"]
        return reward + sum(self.weights[name] for name in names)

    def _offloaded(self, phase: str) -> tuple[str, ...]:
        """Of the pipeline with model offload: the decoder, once used, stays beside the denoiser and the reward.

        With a preview the reward of the finished pictures comes when the pipeline has taken everything away.
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
