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


@dataclass(frozen=True)
class Settings:
    """How a call is to be made.

    Attributes:
        particle_batch_size: particles that go through the denoiser at once.
        decode_batch_size: predicted pictures that are decoded at once.
        reward_batch_size: pictures that the reward sees at once.
        model_offload: `pipe.enable_model_cpu_offload()`: text encoders, denoiser and decoder come to the GPU in turn.
        reward_offload: `load_reward(..., offload=True)`: the reward rests on the CPU between its calls.
    """

    particle_batch_size: int
    decode_batch_size: int
    reward_batch_size: int
    model_offload: bool = False
    reward_offload: bool = False

    def batch_size(self, phase: str, num_particles: int) -> int:
        """Pictures at once in a phase; the prompt is encoded for all at once."""
        sizes = {"denoise": self.particle_batch_size, "decode": self.decode_batch_size}
        return {"text": num_particles, "reward": self.reward_batch_size, **sizes}[phase]

    def keywords(self, num_particles: int) -> dict[str, int]:
        """Keywords of the pipeline's call; a batch of all particles needs none.

        Example:
            >>> Settings(2, 4, 4).keywords(4)
            {'particle_batch_size': 2}
        """
        names = ("particle_batch_size", "decode_batch_size", "reward_batch_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) < num_particles}


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
        weights: bytes of `text`, `denoiser`, `decoder`, `other` and `reward`.
        one: costs of one picture.
        all: costs of K pictures.
    """

    num_particles: int
    weights: dict[str, int]
    one: BatchCosts
    all: BatchCosts

    def need(self, phase: str, settings: Settings) -> PhaseNeed:
        """Bytes at the peak of one phase.

        Args:
            phase: one of `PHASES`.
            settings: how the call is made.
        """
        batch_size = settings.batch_size(phase, self.num_particles)
        return PhaseNeed(
            phase=phase,
            batch_size=batch_size,
            weights=self._resident(phase, settings),
            kept=self._kept(phase, batch_size),
            activations=self._activations(phase, batch_size),
        )

    def needs(self, settings: Settings) -> tuple[PhaseNeed, ...]:
        """Bytes at the peak of each phase, in the order of `PHASES`."""
        return tuple(self.need(phase, settings) for phase in PHASES)

    def _activations(self, phase: str, batch_size: int) -> int:
        low, high = self.one.activations[phase], self.all.activations[phase]
        if self.num_particles == 1:
            return high
        return low + -(-(high - low) * (batch_size - 1) // (self.num_particles - 1))

    def _kept(self, phase: str, batch_size: int) -> int:
        """Before the first step nothing is kept. A part of the pictures waits for the others, and is joined to them."""
        pictures = self.all.image_bytes if phase == "reward" or batch_size < self.num_particles else 0
        return {"text": 0, "denoise": self.all.kept}.get(phase, self.all.kept + pictures)

    def _resident(self, phase: str, settings: Settings) -> int:
        """Weights on the GPU. With model offload the decoder, once used, stays beside the denoiser and the reward."""
        reward = 0 if settings.reward_offload and phase != "reward" else self.weights["reward"]
        if settings.model_offload:
            here = {"text": ["text"], "denoise": ["denoiser", "decoder"]}.get(phase, ["decoder"])
        else:
            here = ["text", "denoiser", "decoder", "other"]
        return reward + sum(self.weights[name] for name in here)
