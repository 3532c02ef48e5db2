"""Latents to images, per family of autoencoders, as the final decode of each Diffusers pipeline does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DecodeFn = Callable[[Tensor], Tensor]
"""Latents `(B, ...)` as the scheduler sees them, to images `(B, 3, H, W)` in [0, 1]."""


class LatentDecoder:
    """Decodes the latents of one pipeline call.

    Families: `AutoencoderKL` and whatever shares its configuration (a `scaling_factor`, an optional `shift_factor`, or
    a mean and a standard deviation per channel; `AutoencoderTiny` too), with the float32 upcast that SDXL's autoencoder
    asks for; packed latents (Flux); and pipelines without an autoencoder, whose samples are the pictures.

    Args:
        pipe: the wrapped pipeline.
        height: height of the picture in pixels, None for the pipeline's default. Only packed latents need it.
        width: the same for the width.
        autoencoder: decodes in place of the pipeline's own. It is moved to the latents and to the precision of the
            pipeline's own.
        shrink: factor by which the latents are averaged down first; the picture is as much smaller.

    Raises:
        ValueError: when called on latents that it cannot decode; pass `preview` to `FKSteeringPipeline` for these.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        autoencoder: Any = None,
        shrink: int = 1,
    ) -> None:
        self._pipe = pipe
        self._size = (height, width)
        self._autoencoder = autoencoder
        self._shrink = shrink

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents `(B, ...)` to images `(B, 3, H, W)` float32 in [0, 1]. Values that are not finite stay so."""
        vae = getattr(self._pipe, "vae", None)
        if vae is None:
            return to_unit_range(latents)
        if self._autoencoder is not None:
            vae = _like(self._autoencoder, device=latents.device, dtype=vae.dtype)
        with float32_if_asked(vae):
            scaled = unscale_latents(vae, self._shrunk(self._unpack(latents))).to(vae.dtype)
            return to_unit_range(vae.decode(scaled, return_dict=False)[0])

    def knows(self, latents: Tensor) -> bool:
        """Whether latents of this shape can be decoded."""
        return latents.ndim == 4 or (latents.ndim == 3 and hasattr(self._pipe, "_unpack_latents"))

    def _shrunk(self, latents: Tensor) -> Tensor:
        return latents if self._shrink == 1 else torch.nn.functional.avg_pool2d(latents, self._shrink)

    def _unpack(self, latents: Tensor) -> Tensor:
        if latents.ndim == 4:
            return latents
        if not self.knows(latents):
            raise ValueError(
                f"{type(self._pipe).__name__} has latents of shape {tuple(latents.shape)}, which are not known here; "
                "pass FKSteeringPipeline(pipe, reward=..., preview=...), a function of these latents to images in "
                "[0, 1]."
            )
        default = self._pipe.default_sample_size * self._pipe.vae_scale_factor
        height, width = (side or default for side in self._size)
        return self._pipe._unpack_latents(latents, height, width, self._pipe.vae_scale_factor)


def _like(autoencoder: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The autoencoder, moved; converted only where it has to be, since Diffusers warns of that each time."""
    autoencoder.to(device)
    return autoencoder if autoencoder.dtype == dtype else autoencoder.to(dtype)


def unscale_latents(vae: Any, latents: Tensor) -> Tensor:
    """Undo the normalisation of the latents that the autoencoder's configuration states.

    Args:
        vae: autoencoder with `config.scaling_factor`, and optionally `shift_factor` or `latents_mean` and
            `latents_std`.
        latents: `(B, C, H, W)`.

    Returns:
        `(B, C, H, W)`, what `vae.decode` takes.

    Example:
        >>> from types import SimpleNamespace
        >>> vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.5, shift_factor=1.0))
        >>> float(unscale_latents(vae, torch.ones(1, 1, 1, 1)))
        3.0
    """
    scale = getattr(vae.config, "scaling_factor", None) or 1.0
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype) for values in (mean, std))
        return latents * std / scale + mean
    return latents / scale + (getattr(vae.config, "shift_factor", None) or 0.0)


@contextmanager
def float32_if_asked(vae: Any) -> Iterator[None]:
    """Run a float16 autoencoder that overflows in float16 (`config.force_upcast`) in float32, and put it back."""
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(torch.float16)


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] to float32 in [0, 1], clamped.

    Example:
        >>> to_unit_range(torch.tensor([-1.0, 0.0, 3.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (pixels.float() / 2 + 0.5).clamp(0, 1)
