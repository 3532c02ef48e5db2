"""Advice of a plan: seconds at a given or measured speed, and sentences on what to write or to change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from fk_reward.planning.memory import PhaseNeed, Settings, gigabytes

_SIDE, _NUM_PRODUCTS = 8192, 20  # a product is 1.1e12 operations, far more than it takes to start a kernel


def parse_tflops(text: str) -> dict[str, float]:
    """10¹² operations a second, one number for all dtypes or one for each.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_tflops("400"), parse_tflops("float16=400,float32=40")
        ({'': 400.0}, {'float16': 400.0, 'float32': 40.0})
    """
    try:
        pairs = [part.rpartition("=") for part in text.split(",")]
        rates = {dtype.strip(): float(number) for dtype, _, number in pairs}
    except ValueError:
        rates = {}
    if not rates or not all(0 < rate < float("inf") for rate in rates.values()):
        raise ValueError(
            f"tflops should be a positive number, or one for each dtype such as float16=400,float32=40; got {text!r}."
        )
    return rates


def measured_tflops(device: torch.device | str, dtype: torch.dtype) -> float:
    """10¹² operations a second of large matrix products, the most that a model can reach; CUDA only."""
    with torch.device(device):
        matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    for _ in range(3):  # the first products load the library and raise the clock
        torch.mm(matrix, matrix)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_NUM_PRODUCTS):
        torch.mm(matrix, matrix)
    torch.cuda.synchronize(device)
    return 2 * _SIDE**3 * _NUM_PRODUCTS / (time.perf_counter() - started) / 1e12


def estimated_seconds(flops: Mapping[str, int], rates: Mapping[str, float]) -> float | None:
    """Operations over operations a second, summed over the dtypes.

    Args:
        flops: operations by dtype.
        rates: 10¹² a second by dtype; that of "" is for any dtype without its own.

    Returns:
        None if a rate is missing.

    Example:
        >>> estimated_seconds({"float16": 4 * 10**12, "float32": 10**12}, {"": 2.0})
        2.5
        >>> estimated_seconds({"float16": 1}, {"float32": 1.0}) is None
        True
    """
    seconds = 0.0
    for dtype, count in flops.items():
        rate = rates.get(dtype, rates.get(""))
        if count and rate is None:
            return None
        seconds += count / (rate or 1.0) / 1e12
    return seconds


STOP_ADVICE = "With stop_reward this is the most that a call takes: scoring ends once a prediction reaches it."

GRADIENT_ADVICE = (
    "The gradient of a guided step is taken in one graph of all particles, whose memory no batch size lowers: fewer "
    "particles, smaller images or a preview do."
)

_WORTH_SAYING = 0.01  # share of what is saved

_SMALLER_REWARD = "a smaller reward, or fewer crops where it has them (num_crops=4 of LLaVA-Reward on Phi-3.5-vision)"
_SMALLER = {
    "text": "a model with smaller text encoders",
    "denoise": "smaller images (height, width), or a smaller model",
    "decode": "smaller images (height, width), or decoding in tiles (pipe.vae.enable_tiling())",
    "preview": "smaller images (height, width), or a smaller preview",
    "reward": _SMALLER_REWARD,
    "preview reward": _SMALLER_REWARD,
    "gradient": f"fewer particles, smaller images, a preview, {_SMALLER_REWARD}; or search='fk'",
    "preview gradient": f"fewer particles, smaller images, {_SMALLER_REWARD}; or search='fk'",
}


def advice_for(
    settings: Settings, needs: Sequence[PhaseNeed], memory: int | None, *, request: tuple[str, int, torch.dtype]
) -> tuple[str, ...]:
    """Sentences about a plan.

    Args:
        settings: those to use; the smallest ones if nothing fits.
        needs: bytes of each phase under these settings.
        memory: bytes of the GPU if nothing fits, else None.
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
        sentences.append("Call pipe.enable_model_cpu_offload() instead of pipe.to('cuda').")
    if settings.reward_offload:
        sentences.append(f"Load the reward with load_reward({reward!r}, offload=True) and .to('cuda').")
    keywords = settings.keywords(num_particles)
    if keywords:
        sentences.append(f"Call the pipeline with {', '.join(f'{name}={n}' for name, n in keywords.items())}.")
    return tuple(sentences) or ("Nothing special is needed: all particles at once, everything on the GPU.",)


def preview_advice(
    flops: Mapping[str, int],
    with_preview: Mapping[str, int],
    *,
    rates: Mapping[str, float],
    peaks: tuple[int, int],
) -> tuple[str, ...]:
    """Say what a preview would save, if it is at least 1 %.

    Args:
        flops: operations of the call, by dtype.
        with_preview: the same with the preview.
        rates: 10¹² operations a second, by dtype.
        peaks: bytes of the call without the preview, and with it.

    Example:
        >>> flops, less = {"float16": 10**14, "float32": 10**13}, {"float16": 10**14, "float32": 10**12}
        >>> preview_advice(flops, less, rates={"": 10.0}, peaks=(10, 10))[0].partition(":")[2]
        ' 8 % of the operations less, about 0.9 of 11 s.'
    """
    before, after = sum(flops.values()), sum(with_preview.values())
    parts = []
    if before - after >= _WORTH_SAYING * before:
        parts.append(f"{100 * (before - after) / before:.0f} % of the operations less")
    seconds, shorter = estimated_seconds(flops, rates), estimated_seconds(with_preview, rates)
    if seconds and shorter is not None and seconds - shorter >= _WORTH_SAYING * seconds:
        parts.append(f"about {seconds - shorter:.2g} of {seconds:.3g} s")
    if peaks[0] - peaks[1] >= _WORTH_SAYING * peaks[0]:
        parts.append(f"a peak of {gigabytes(peaks[1])} instead of {gigabytes(peaks[0])}")
    saved = ", ".join(parts)
    return (f'preview="auto" would decode at the scoring steps by a tiny autoencoder: {saved}.',) if saved else ()


def _too_large(needs: Sequence[PhaseNeed], memory: int, dtype: torch.dtype) -> tuple[str, ...]:
    over = [need for need in needs if need.needed > memory]
    most = max(need.needed for need in needs)
    sentences = [
        f"It does not fit: one image at a time, with everything offloaded that can be, {gigabytes(most)} are needed.",
        *(f"Of these {need.phase} needs {gigabytes(need.needed)}: take {_SMALLER[need.phase]}." for need in over),
    ]
    if dtype == torch.float32:
        sentences.append("float16 or bfloat16 halves what the pipeline takes.")
    return tuple(sentences)
