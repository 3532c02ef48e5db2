"""Latents to images: the pipeline's own autoencoder, and cheaper previews for the scoring steps."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderTiny, ModelMixin
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from fk_reward.models import model_source
from fk_reward.pipelines.batching import MicroBatches
from fk_reward.pipelines.call_arguments import SteeredCall
from fk_reward.pipelines.epilogue import DecodeFn, DecodeHook
from fk_reward.pipelines.running_call import RunningCall
from fk_reward.search.base import Population, can_move, num_finished
from fk_reward.text import did_you_mean


class LatentDecoder:
    """Decodes the latents of one pipeline.

    While a call runs (`call`), it does what that call does at its end, whatever the family (`RunningCall`). Outside a
    call it knows one layout, latents `(B, C, H, W)` of an autoencoder whose configuration states their normalisation
    (a `scaling_factor`, an optional `shift_factor`, or a mean and a standard deviation per channel), widened to float32
    where the pipeline itself widens it (`widens_to_float32`); Flux's packed form of it; and pixels.

    Args:
        pipe: the wrapped pipeline.
        height: height of the image in pixels, None for the pipeline's default. Only packed latents outside a call need
            it.
        width: the same for the width.
        autoencoder: decodes instead of the pipeline's own. It is moved to the latents and to the precision of the
            pipeline's own.
        shrink: factor by which the latents are averaged down first; the image is as much smaller.
        call: the call that is running.
        batched: makes of the autoencoder's `decode` one that takes a few latents at a time.

    Raises:
        ValueError: when called on latents that it cannot decode; pass `preview` to `FKSteeringPipeline` for these.
    """

    def __init__(  # noqa: PLR0913 (one parameter for each option)
        self,
        pipe: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        autoencoder: Any = None,
        shrink: int = 1,
        call: RunningCall | None = None,
        batched: Callable[[DecodeFn], DecodeFn] = lambda decode: decode,
    ) -> None:
        self._pipe = pipe
        self._size = (height, width)
        self._autoencoder = autoencoder
        self._shrink = shrink
        self._call = call
        self._batched = batched

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents `(B, ...)` to images `(B, 3, H, W)` float32 in [0, 1]. Values that are not finite stay so."""
        if self._call is None:
            return self._decode(latents)
        return self._call.images(latents, decode=self._hook)

    @property
    def _hook(self) -> DecodeHook | None:
        """What runs in the place of the autoencoder at the end of a call; None for the autoencoder itself."""
        if self._autoencoder is not None:
            return self._decode_tiny
        return None if self._shrink == 1 else self._decode_shrunk

    def _decode_tiny(self, own: Any, scaled: Tensor, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        """`own.decode`, by the other autoencoder, which takes latents as the scheduler sees them."""
        latents, join = _one_frame(scale_latents(own, scaled))
        # not the `to` of Diffusers, which warns of float16 at every call
        tiny = nn.Module.to(self._autoencoder, scaled.device, own.dtype)
        decode = self._batched(lambda rows: tiny.decode(unscale_latents(tiny, rows.to(tiny.dtype))).sample)
        images = join(decode(latents))
        return DecoderOutput(sample=images) if return_dict else (images,)

    def _decode_shrunk(self, own: Any, scaled: Tensor, *args: Any, **options: Any) -> Any:
        """`own.decode` of latents that are averaged down."""
        latents, join = _one_frame(scaled)
        return own.decode(join(self._shrunk(latents)), *args, **options)

    def _decode(self, latents: Tensor) -> Tensor:
        vae, unpacked = getattr(self._pipe, "vae", None), self._unpacked(latents)
        if unpacked is None:
            raise ValueError(
                f"{type(self._pipe).__name__} has latents of shape {tuple(latents.shape)}, which cannot be decoded "
                "outside a call; pass FKSteeringPipeline(pipe, reward=..., preview=...), a function of these latents "
                "to images in [0, 1]."
            )
        if vae is None:
            return to_unit_range(unpacked)
        if self._autoencoder is not None:
            vae = nn.Module.to(self._autoencoder, latents.device, vae.dtype)
        with _in_float32(vae, wide=widens_to_float32(self._pipe, vae)):
            scaled = unscale_latents(vae, self._shrunk(unpacked).to(vae.dtype))
            return to_unit_range(vae.decode(scaled, return_dict=False)[0])

    def _shrunk(self, latents: Tensor) -> Tensor:
        return latents if self._shrink == 1 else torch.nn.functional.avg_pool2d(latents, self._shrink)

    def _unpacked(self, latents: Tensor) -> Tensor | None:
        """Latents, or the pixels where there is no autoencoder, `(B, C, H, W)`; None where they are of another kind."""
        if latents.ndim == 3 and hasattr(self._pipe, "_unpack_latents"):
            default = self._pipe.default_sample_size * self._pipe.vae_scale_factor
            height, width = (side or default for side in self._size)
            latents = self._pipe._unpack_latents(latents, height, width, self._pipe.vae_scale_factor)
        is_decodable = latents.ndim == 4 and (getattr(self._pipe, "vae", None) is not None or latents.shape[1] == 3)
        return latents if is_decodable else None


def _one_frame(latents: Tensor) -> tuple[Tensor, DecodeFn]:
    """Latents `(B, C, H, W)` also of a video autoencoder's single frame, and a function that puts the frame back."""
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents[:, :, 0], lambda images: images[:, :, None]
    return latents, lambda images: images


def scale_latents(vae: Any, latents: Tensor) -> Tensor:
    """The opposite of `unscale_latents`: what `vae.decode` takes, to latents as the scheduler sees them.

    Args:
        vae: see `unscale_latents`.
        latents: `(B, C, H, W)` or `(B, C, T, H, W)`.

    Example:
        >>> from types import SimpleNamespace
        >>> vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.5, shift_factor=1.0))
        >>> float(scale_latents(vae, torch.full((1, 1, 1, 1), 3.0)))
        1.0
    """
    scale, mean, std = _normalisation(vae, latents)
    return (latents - mean) * scale / std


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
    scale, mean, std = _normalisation(vae, latents)
    return latents * std / scale + mean if isinstance(std, Tensor) else latents / scale + mean


def _normalisation(vae: Any, latents: Tensor) -> tuple[float, Tensor | float, Tensor | float]:
    """Scaling factor, mean or shift, and standard deviation, each of which may differ from channel to channel."""
    scale = getattr(vae.config, "scaling_factor", None) or 1.0
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return scale, getattr(vae.config, "shift_factor", None) or 0.0, 1.0
    sides = (1, -1, *(1,) * (latents.ndim - 2))
    mean, std = (torch.tensor(values).view(sides).to(latents.device, latents.dtype) for values in (mean, std))
    return scale, mean, std


def widens_to_float32(pipe: Any, vae: Any) -> bool:
    """Whether the pipeline decodes with this autoencoder in float32: it is in float16, in which it overflows.

    `config.force_upcast` says that it does, and is true unless the configuration states otherwise: it is, too, for the
    autoencoders of Stable Diffusion 1 and 2, which do not overflow. So only SDXL and its relatives look at it at the
    end of their call. Here it counts where the pipeline's class looks at it.

    Example:
        >>> from types import SimpleNamespace
        >>> from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
        >>> vae = SimpleNamespace(dtype=torch.float16, config=SimpleNamespace(force_upcast=True))
        >>> [widens_to_float32(cls.__new__(cls), vae) for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)]
        [False, True]
    """
    asked = getattr(vae, "dtype", None) == torch.float16 and getattr(vae.config, "force_upcast", False)
    return bool(asked) and any("force_upcast" in _names_read(cls) for cls in type(pipe).__mro__)


def _names_read(cls: type) -> tuple[str, ...]:
    """Attributes and globals that the class's own `__call__` names."""
    call = vars(cls).get("__call__")
    code = None if call is None else getattr(inspect.unwrap(call), "__code__", None)
    return () if code is None else code.co_names


@contextmanager
def _in_float32(vae: Any, *, wide: bool) -> Iterator[None]:
    """Run a float16 autoencoder in float32 if `wide`, and put it back."""
    if wide:
        vae.float()
    try:
        yield
    finally:
        if wide:
            vae.half()


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] to float32 in [0, 1], clamped; with the rounding of Diffusers, which computes in their dtype.

    Example:
        >>> to_unit_range(torch.tensor([-1.0, 0.0, 3.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (pixels / 2 + 0.5).clamp(0, 1).float()


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
    "shapes-preview": TinyDecoder("shapes-preview", 4, 1.0),
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
    """Load a preview: a decoder of this pipeline's latents.

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
    """Refuse a published autoencoder, known by the last part of its name, for the latents of another family."""
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
        raise ValueError(f"{type(pipe).__name__} has no autoencoder: its samples are the images. Leave preview out.")
    return vae


def _described(vae: Any) -> str:
    config = vae.config
    return f"latents of {config.latent_channels} channels, scaling factor {_scaling(config)}, shift {_shift(config)}"


def _scaling(config: Any) -> float:
    return getattr(config, "scaling_factor", None) or 1.0


def _shift(config: Any) -> float:
    return getattr(config, "shift_factor", None) or 0.0


def watched_decoding(
    pipe: Any, call: SteeredCall, batches: MicroBatches, *, population: Population, preview: Preview | None, aside: bool
) -> tuple[RunningCall, DecodeFn]:
    """The watch over a wrapped pipeline's call, whose end decodes, and the decoder of the scoring steps.

    Args:
        pipe: the wrapped pipeline.
        call: of it.
        batches: in which is decoded.
        population: of the call.
        preview: decodes at the scoring steps; None for the end of the call.
        aside: whether the reward reads one batch while the next is decoded.
    """
    size = {name: call.arguments.get(name) for name in ("height", "width")}
    decode = preview_decoder(preview, pipe, **size)
    of_user = None if isinstance(decode, LatentDecoder) else batches.decoder(decode)
    # a batch that grows cannot be tried out before it has grown
    sizes = [len(call.prompts) * min(num_finished(call.config), population.num_particles)]
    if aside and call.batch_sizes.decode_batch_size is not None:
        sizes.append(1)  # decoded a few at a time, each batch through the complete end of the call
    watched = RunningCall(
        pipe, output_type=call.output_type, sizes=sizes, decodes=can_move(population), preview=of_user
    )
    return watched, of_user or preview_decoder(preview, pipe, **size, call=watched, batched=batches.decoder)
