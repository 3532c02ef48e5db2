"""Cheaper decoders for the scoring steps: tiny autoencoders by name, reduced resolution, any function."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import AutoencoderTiny, ModelMixin

from fk_reward.pipelines.decoding import LatentDecoder
from fk_reward.pipelines.rest_of_call import DecodeFn
from fk_reward.rewards.hub_paths import model_source
from fk_reward.user_text import did_you_mean

AUTO = "auto"
_REDUCED = re.compile(r"vae/(\d+)")


@dataclass(frozen=True)
class ReducedResolution:
    """The pipeline's own autoencoder on latents that are averaged down: an F-th of the side, an F^2-th of the work.

    Attributes:
        factor: F, at least 2.

    Raises:
        ValueError: for another factor.

    Example:
        >>> ReducedResolution(1)
        Traceback (most recent call last):
        ValueError: The factor of ReducedResolution should be an int of at least 2, got 1.
    """

    factor: int

    def __post_init__(self) -> None:
        """Check the factor."""
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 2:
            raise ValueError(f"The factor of ReducedResolution should be an int of at least 2, got {self.factor!r}.")


Preview: TypeAlias = AutoencoderTiny | ReducedResolution | DecodeFn
"""What decodes predicted latents at the scoring steps."""


@dataclass(frozen=True)
class TinyDecoder:
    """A published tiny autoencoder, and the latents for which it was distilled.

    A tiny autoencoder takes the latents as the scheduler sees them, and its own config names no family (its
    `scaling_factor` is 1): on latents of another normalisation it gives noise without a word. Hence these numbers,
    which are those of the family's `AutoencoderKL`.

    Attributes:
        repository: hub id, or name of an embedded model.
        latent_channels: number of channels.
        scaling_factor: of the family's autoencoder.
        shift_factor: of the family's autoencoder.
    """

    repository: str
    latent_channels: int
    scaling_factor: float
    shift_factor: float = 0.0

    def fits(self, vae: Any) -> bool:
        """Whether the latents of this autoencoder are those of the family."""
        config = vae.config
        return (
            config.latent_channels == self.latent_channels
            and math.isclose(_scaling(config), self.scaling_factor)
            and math.isclose(_shift(config), self.shift_factor)
            and getattr(config, "latents_mean", None) is None
        )


PREVIEWS: dict[str, TinyDecoder] = {
    "taesd": TinyDecoder("madebyollin/taesd", 4, 0.18215),
    "taesdxl": TinyDecoder("madebyollin/taesdxl", 4, 0.13025),
    "taesd3": TinyDecoder("madebyollin/taesd3", 16, 1.5305, 0.0609),
    "taef1": TinyDecoder("madebyollin/taef1", 16, 0.3611, 0.1159),
    "shapes-preview": TinyDecoder("shapes-preview", 8, 1.0),
}
"""Name -> tiny autoencoder: of Stable Diffusion 1 and 2, SDXL, Stable Diffusion 3, Flux, and the shapes world.

Source: github.com/madebyollin/taesd; the factors are those of each family's `vae/config.json`.
"""


def load_preview(
    preview: str | os.PathLike[str] | Preview | None,
    pipe: Any,
    *,
    load: Callable[[str], AutoencoderTiny] = AutoencoderTiny.from_pretrained,
) -> Preview | None:
    """Turn what a person writes into a decoder of this pipeline's latents.

    Args:
        preview: `"auto"` (the tiny autoencoder of `PREVIEWS` for the family of the pipeline's latents), a name of
            `PREVIEWS`, `"vae/2"` (reduced resolution), a hub id or a folder of an `AutoencoderTiny`; an
            `AutoencoderTiny`, a `ReducedResolution`, or a function from latents as the scheduler sees them to images
            `(B, 3, H, W)` in [0, 1], which is taken as it is. None for the pipeline's own autoencoder.
        pipe: the pipeline whose latents are to be decoded.
        load: makes a tiny autoencoder from a hub id or a folder.

    Raises:
        ValueError: for an unknown name, or an autoencoder of other latents than the pipeline's.
        TypeError: for an object that cannot decode.
        OSError: for an autoencoder that cannot be found or fetched.

    Example:
        >>> load_preview("vae/2", pipe=None)
        ReducedResolution(factor=2)
    """
    if preview is None or isinstance(preview, ReducedResolution):
        return preview
    if isinstance(preview, str | os.PathLike):
        return _load_by_name(os.fspath(preview), pipe, load)
    if isinstance(preview, AutoencoderTiny):
        _check_latents(preview, pipe)
        return preview
    if isinstance(preview, ModelMixin) or not callable(preview):
        raise TypeError(
            "preview should be a name, an AutoencoderTiny, a ReducedResolution or a function of latents to images in "
            f"[0, 1], got {type(preview).__name__}."
        )
    return preview


def preview_decoder(preview: Preview | None, pipe: Any, **options: Any) -> DecodeFn:
    """The decoder of the scoring steps of one call.

    Args:
        preview: of `load_preview`.
        pipe: the wrapped pipeline.
        **options: of `LatentDecoder`; a function decodes by itself.
    """
    if isinstance(preview, AutoencoderTiny):
        return LatentDecoder(pipe, autoencoder=preview, **options)
    if isinstance(preview, ReducedResolution):
        return LatentDecoder(pipe, shrink=preview.factor, **options)
    return LatentDecoder(pipe, **options) if preview is None else preview


def _load_by_name(name: str, pipe: Any, load: Callable[[str], AutoencoderTiny]) -> Preview:
    reduced = _REDUCED.fullmatch(name)
    if reduced is not None:
        return ReducedResolution(int(reduced[1]))
    if name == AUTO:
        name = _name_for(pipe)
    known = PREVIEWS.get(name)
    if known is not None:
        _check_family(name, pipe)
    elif "/" not in name and not Path(name).is_dir():
        hint = did_you_mean(name, PREVIEWS)
        raise ValueError(
            f"Unknown preview {name!r}.{hint} Known are {', '.join(map(repr, PREVIEWS))}, 'auto' and 'vae/2'; or pass "
            "the hub id or the folder of an AutoencoderTiny."
        )
    source = name if known is None else known.repository
    autoencoder = load(model_source(source, "an AutoencoderTiny"))
    _check_latents(autoencoder, pipe)
    return autoencoder


def _name_for(pipe: Any) -> str:
    fitting = [name for name, decoder in PREVIEWS.items() if decoder.fits(_vae(pipe))]
    if len(fitting) != 1:
        raise ValueError(
            f"preview='auto' knows no tiny autoencoder for {_described(_vae(pipe))}; pass 'vae/2' for reduced "
            "resolution, or an AutoencoderTiny that was distilled for these latents."
        )
    return fitting[0]


def _check_family(name: str, pipe: Any) -> None:
    """Refuse a published autoencoder, told by the last part of its name, for the latents of another family."""
    decoder, vae = PREVIEWS.get(Path(name).name), _vae(pipe)
    if decoder is None or decoder.fits(vae):
        return
    right = [other for other, candidate in PREVIEWS.items() if candidate.fits(vae)]
    remedy = f"use {right[0]!r} or 'auto'" if right else "use 'vae/2', or an AutoencoderTiny of this family"
    raise ValueError(
        f"Preview {name!r} decodes latents of {decoder.latent_channels} channels, scaling factor "
        f"{decoder.scaling_factor}, shift {decoder.shift_factor}; it would make noise of {_described(vae)}: {remedy}."
    )


def _check_latents(autoencoder: AutoencoderTiny, pipe: Any) -> None:
    """Refuse an autoencoder for other latents than the pipeline's, as far as its config and its name tell."""
    _check_family(str(autoencoder.config.get("_name_or_path", "")), pipe)
    vae, config = _vae(pipe), autoencoder.config
    if config.latent_channels != vae.config.latent_channels:
        raise ValueError(
            f"The preview decodes latents of {config.latent_channels} channels, but this pipeline has "
            f"{_described(vae)}."
        )
    normalisation = (_scaling(config), _shift(config))
    if normalisation not in ((1.0, 0.0), (_scaling(vae.config), _shift(vae.config))):
        raise ValueError(
            f"The preview's config states scaling factor {normalisation[0]} and shift {normalisation[1]}; it should "
            f"state 1 and 0, for latents as the scheduler sees them, or those of this pipeline, which has "
            f"{_described(vae)}."
        )


def _vae(pipe: Any) -> Any:
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise ValueError(f"{type(pipe).__name__} has no autoencoder: its samples are the pictures. Leave preview out.")
    return vae


def _described(vae: Any) -> str:
    config = vae.config
    return f"latents of {config.latent_channels} channels, scaling factor {_scaling(config)}, shift {_shift(config)}"


def _scaling(config: Any) -> float:
    return getattr(config, "scaling_factor", None) or 1.0


def _shift(config: Any) -> float:
    return getattr(config, "shift_factor", None) or 0.0
