"""Look-ahead predictions in a pipeline: its settings, what has none, and a consistency LoRA that is on for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fk_reward.pipelines.hooks import main_denoiser
from fk_reward.pipelines.pipeline_state import stateful_hooks
from fk_reward.pipelines.repeated_denoiser import RepeatedDenoiser
from fk_reward.sampling.lookahead import ConsistencyPrediction, LookAhead, require_deterministic_steps
from fk_reward.sampling.transitions import Prediction
from fk_reward.search.base import SearchConfig, scores_predictions
from fk_reward.search.rollover import Proposing
from fk_reward.value_checks import whole_number

LookAheadSetting: TypeAlias = int | str
"""m steps, or `"adapter"`: see `FKSteeringPipeline`."""

LOOKAHEAD_PIPELINES = (
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    *("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    *("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
    *("FluxPipeline", "FluxImg2ImgPipeline"),
    *("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
)
"""Pipelines whose denoiser can be asked again, with their subclasses."""
ADAPTER_PIPELINES = LOOKAHEAD_PIPELINES[:4]
"""Pipelines of which there are consistency LoRAs: Stable Diffusion 1 and 2, SDXL."""

ADAPTER = "adapter"


def checked_lookahead(value: Any) -> LookAheadSetting:
    """A look-ahead as it is typed: a number of steps, `"adapter"`, or `"adapter:NAME"`.

    Raises:
        TypeError: for anything else.
        ValueError: for a number below 1, and another text.

    Example:
        >>> checked_lookahead(3), checked_lookahead("adapter:lcm")
        (3, 'adapter:lcm')
        >>> checked_lookahead("lcm")
        Traceback (most recent call last):
        ValueError: lookahead should be a whole number of steps, 'adapter' or 'adapter:NAME', got 'lcm'.
    """
    if not isinstance(value, str):
        return whole_number("lookahead", value, minimum=1)
    kind, colon, name = value.partition(":")
    if kind != ADAPTER or bool(colon) != bool(name):
        raise ValueError(f"lookahead should be a whole number of steps, 'adapter' or 'adapter:NAME', got {value!r}.")
    return value


def chosen_lookahead(
    pipe: Any, lookahead: LookAheadSetting | None, default: LookAheadSetting, config: SearchConfig
) -> LookAheadSetting:
    """The look-ahead of a call, 1 where no predictions are scored; refused before anything is spent on the call.

    Args:
        pipe: the wrapped pipeline.
        lookahead: of the call; None for that of the pipeline.
        default: that of the pipeline, which says nothing about searches that score no predictions.
        config: of the search.

    Raises:
        ValueError: as of `require_lookahead`, and where the call gives one and its search scores no predictions.
    """
    chosen = default if lookahead is None else checked_lookahead(lookahead)
    if isinstance(config.population(), Proposing):
        require_repeats(pipe, chosen, config)
    scores = scores_predictions(config.population())
    if lookahead is not None and chosen != 1 and not scores:
        raise ValueError(
            f"lookahead={chosen!r} is about the predictions that are scored on the way, and {type(config).__name__} "
            "scores finished images only, with these settings: leave it out."
        )
    if not scores:
        return 1
    if chosen != 1:
        PipelineLookAhead(pipe, chosen)  # refuses
    return chosen


def require_repeats(pipe: Any, lookahead: LookAheadSetting, config: SearchConfig) -> None:
    """Refuse a pipeline whose steps cannot be drawn again, for a search that does so.

    Args:
        pipe: the wrapped pipeline.
        lookahead: of the call.
        config: of the search.

    Raises:
        ValueError: as of `require_lookahead`, and for an adapter, which would answer for the model.
    """
    name = type(config).__name__
    if isinstance(lookahead, str):
        raise ValueError(f"{name} asks the denoiser itself again: lookahead={lookahead!r} does not go with it.")
    require_denoiser(pipe, LOOKAHEAD_PIPELINES, what=f"search={name}")


def require_lookahead(pipe: Any, lookahead: LookAheadSetting) -> nn.Module:
    """Refuse a pipeline that has no look-ahead, before anything is spent on its call.

    Args:
        pipe: the wrapped pipeline.
        lookahead: more than one step, or an adapter.

    Returns:
        The denoiser that is asked.

    Raises:
        ValueError: for another pipeline, a feature cache, a ControlNet, and a scheduler without such steps.
    """
    known = ADAPTER_PIPELINES if isinstance(lookahead, str) else LOOKAHEAD_PIPELINES
    denoiser = require_denoiser(pipe, known, what=f"lookahead={lookahead!r}")
    require_deterministic_steps(pipe.scheduler)
    return denoiser


def require_denoiser(pipe: Any, known: Sequence[str], *, what: str) -> nn.Module:
    """The denoiser of a pipeline that can be asked again.

    Args:
        pipe: the wrapped pipeline.
        known: classes of pipelines of which it can.
        what: asks it, for the message.

    Raises:
        ValueError: for another pipeline, a feature cache, and a ControlNet.
    """
    kind, words = type(pipe), what
    if getattr(pipe, "controlnet", None) is not None:
        raise ValueError(
            f"{kind.__name__} has no look-ahead: its ControlNet's outputs belong to one sample. Leave {words} out."
        )
    if not any(base.__name__ in known for base in kind.__mro__):
        raise ValueError(f"{kind.__name__} has no look-ahead: {words} is for {', '.join(known)}.")
    denoiser = main_denoiser(pipe)
    if denoiser is None:
        raise ValueError(
            f"{kind.__name__} has no unet and no transformer, so that there is nothing to ask for {words}."
        )
    caches = [type(hook).__name__ for hook in stateful_hooks(denoiser)]
    if caches or getattr(denoiser, "is_cache_enabled", False):
        raise ValueError(
            f"{type(denoiser).__name__} keeps a cache from one call to the next ({caches[0] if caches else 'cache'}), "
            f"which the calls of a look-ahead would change: call its disable_cache(), or leave {words} out."
        )
    return denoiser


class AdapterSwitch:
    """Switches one LoRA of a model, which runs beside the others that are active.

    Args:
        model: with adapters that Diffusers has loaded (`load_lora_weights`, `add_adapter`).
        name: of the adapter; empty for the only one that there is.

    Raises:
        ValueError: where there is none of this name, several and no name, or they are fused into the weights.
    """

    def __init__(self, model: nn.Module, name: str = "") -> None:
        names = list(getattr(model, "peft_config", {}))
        if (name and name not in names) or (not name and len(names) != 1):
            missing = f"no adapter {name!r}" if name else f"{len(names) or 'no'} adapters, and none is named"
            raise ValueError(
                f"lookahead='adapter' needs a consistency LoRA, and {type(model).__name__} has {missing} "
                f"({', '.join(names) or 'nothing is loaded'}): write pipe.load_lora_weights(..., adapter_name='lcm') "
                "and lookahead='adapter:lcm'."
            )
        self.name = name or names[0]
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        if any(layer.merged for layer in self._layers):
            raise ValueError(
                f"The adapters of {type(model).__name__} are fused into its weights, so that {self.name!r} cannot be "
                "switched: call pipe.unfuse_lora()."
            )

    @classmethod
    def named(cls, model: nn.Module, lookahead: str) -> AdapterSwitch:
        """That of `"adapter"` or `"adapter:NAME"`."""
        return cls(model, lookahead.partition(":")[2])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Leave the adapter out inside the block."""
        others = [[name for name in _active(layer) if name != self.name] for layer in self._layers]
        with self._activated(others):
            yield

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the adapter work inside the block, beside those that are active."""
        with self._activated([[*(n for n in _active(layer) if n != self.name), self.name] for layer in self._layers]):
            yield

    @contextmanager
    def _activated(self, names: Sequence[list[str]]) -> Iterator[None]:
        # not by `set_adapter`, which writes `requires_grad` as well
        before = [(layer._active_adapter, layer._disable_adapters) for layer in self._layers]
        try:
            for layer, active in zip(self._layers, names, strict=True):
                layer._active_adapter, layer._disable_adapters = active, False
            yield
        finally:
            for layer, (active, disabled) in zip(self._layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled


def _active(layer: Any) -> list[str]:
    return [] if layer.disable_adapters else list(layer.active_adapters)


class PipelineLookAhead:
    """The look-ahead of one call.

    Args:
        pipe: the wrapped pipeline.
        lookahead: as of `checked_lookahead`; 1 for the one-step prediction, which needs nothing.
        draws_again: whether the search draws steps again (`Proposing`), which needs the denoiser as well.

    Attributes:
        prediction: for `steer`.
        denoise: for `steer`.

    Raises:
        ValueError: as of `require_lookahead`.
    """

    def __init__(self, pipe: Any, lookahead: LookAheadSetting, *, draws_again: bool = False) -> None:
        self.prediction: Prediction | None = None
        self.denoise: Callable[[Tensor, Any], Tensor] | None = None
        self._repeated: RepeatedDenoiser | None = None
        self._switch: AdapterSwitch | None = None
        if lookahead == 1 and not draws_again:
            return
        if lookahead == 1:
            self._repeated = RepeatedDenoiser(pipe, require_denoiser(pipe, LOOKAHEAD_PIPELINES, what="this search"))
            self.denoise = self._repeated
            return
        denoiser = require_lookahead(pipe, lookahead)
        self._repeated = RepeatedDenoiser(pipe, denoiser)
        if isinstance(lookahead, str):
            self._switch = AdapterSwitch.named(denoiser, lookahead)
            self.prediction, self.denoise = ConsistencyPrediction(), self._consistent
        else:
            self.prediction, self.denoise = LookAhead(lookahead), self._repeated

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the denoiser's calls of each step inside the block; enter it after `steer`."""
        with ExitStack() as stack:
            if self._switch is not None:
                stack.enter_context(self._switch.off())
            if self._repeated is not None:
                stack.enter_context(self._repeated.recording())
            yield

    def _consistent(self, sample: Tensor, timestep: Any) -> Tensor:
        if self._switch is None or self._repeated is None:
            raise RuntimeError("There is no consistency LoRA.")
        with self._switch.on():
            return self._repeated.conditional(sample, timestep)
