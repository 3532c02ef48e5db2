"""What a plan comes to, in sentences: what to write, or what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fk_reward.planning.memory import PhaseNeed, Settings
from fk_reward.planning.sizes import gigabytes

_SMALLER = {
    "text": "a model with smaller text encoders",
    "denoise": "smaller pictures (height, width), or a smaller model",
    "decode": "smaller pictures (height, width), or decoding in tiles (pipe.vae.enable_tiling())",
    "reward": "a smaller reward, or fewer crops where it has them (num_crops=4 of LLaVA-Reward on Phi-3.5-vision)",
}


def advice_for(
    settings: Settings, needs: Sequence[PhaseNeed], memory: int | None, *, request: tuple[str, int, torch.dtype]
) -> tuple[str, ...]:
    """Sentences about a plan.

    Args:
        settings: those to use; the smallest ones where nothing fits.
        needs: bytes of each phase under these settings.
        memory: bytes of the GPU where nothing fits, else None.
        request: name of the reward, number of particles, dtype of the pipeline.

    Example:
        >>> advice_for(Settings(2, 4, 4), [], None, request=("clipscore", 4, torch.float16))
        ('Call the pipeline with particle_batch_size=2.',)
    """
    reward, num_particles, dtype = request
    if memory is not None:
        return _too_large(needs, memory, dtype)
    sentences = []
    if settings.model_offload:
        sentences.append("Call pipe.enable_model_cpu_offload() in place of pipe.to('cuda').")
    if settings.reward_offload:
        sentences.append(f"Load the reward with load_reward({reward!r}, offload=True) and .to('cuda').")
    keywords = settings.keywords(num_particles)
    if keywords:
        sentences.append(f"Call the pipeline with {', '.join(f'{name}={n}' for name, n in keywords.items())}.")
    return tuple(sentences) or ("Nothing special is needed: all particles at once, everything on the GPU.",)


def _too_large(needs: Sequence[PhaseNeed], memory: int, dtype: torch.dtype) -> tuple[str, ...]:
    over = [need for need in needs if need.needed > memory]
    most = max(need.needed for need in needs)
    sentences = [
        f"It does not fit: one picture at a time, with everything offloaded that can be, {gigabytes(most)} are needed.",
        *(f"Of these {need.phase} needs {gigabytes(need.needed)}: take {_SMALLER[need.phase]}." for need in over),
    ]
    if dtype == torch.float32:
        sentences.append("float16 or bfloat16 halves what the pipeline takes.")
    return tuple(sentences)
