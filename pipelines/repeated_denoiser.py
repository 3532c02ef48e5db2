"""The denoiser of a pipeline as a function: its calls in a step, recorded, and made again with another sample.

No pipeline is copied for it. Whatever the pipeline gives its denoiser (embeddings, sizes, attention arguments) is in
the recorded calls, and how it combines their outputs is read off what it hands to the scheduler.

Letters of shapes: B rows of the sample (G prompts of K particles each, prompt-major).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from fk_reward.pipelines.batching import BatchLayout
from fk_reward.pipelines.epilogue import first_field
from fk_reward.pipelines.hooks import wrap_forward, wrap_method

_OF_THE_SAMPLE = re.compile(r".*residual.*|.*block_samples.*|.*controlnet.*")
"""Arguments of a denoiser that were computed from the sample of the step, as a ControlNet's outputs are."""
_FLUX_SCALE = 1000
"""Flux gives its transformer thousandths of the scheduler's timesteps."""
_TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 2e-2}
_TOLERANCE = 1e-3
"""How far, relative to the norm, what a pipeline hands to its scheduler may be from the guidance that was read off."""
_MOST_OUTPUTS = 2
_HALFWAY = 0.5


@dataclass(frozen=True)
class Guidance:
    """How a pipeline combines the outputs of its denoiser: first + weight (second - first), rescaled where it says so.

    Attributes:
        weight: of the second output; that of classifier-free guidance, or 1 minus it where the order is the other one.
        rescale: share of the rescaled combination (Lin et al. 2023, arXiv 2305.08891, section 3.4).
    """

    weight: float
    rescale: float = 0.0

    @property
    def is_second(self) -> bool:
        """Whether the second output is the conditional one: guidance goes beyond it, away from the other."""
        return self.weight > _HALFWAY

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        """`(B, C, ...)` float32, of one output or two."""
        if len(outputs) == 1:
            return outputs[0].to(torch.float32)
        first, second = (output.to(torch.float32) for output in outputs)
        combined = first + self.weight * (second - first)
        return rescale_noise_cfg(combined, second, guidance_rescale=self.rescale) if self.rescale else combined

    @classmethod
    def read(cls, outputs: Sequence[Tensor], combined: Tensor, pipe: Any) -> Guidance:
        """Read the guidance off a step.

        Args:
            outputs: of the denoiser, `(B, C, ...)` each.
            combined: `(B, C, ...)`, what the scheduler got.
            pipe: the pipeline, whose `guidance_rescale` and `guidance_scale` are tried where the two outputs alone do
                not explain it.

        Raises:
            ValueError: where no guidance of this kind makes `combined` of the outputs.

        Example:
            >>> first, second = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
            >>> round(Guidance.read([first, second], first + 7.5 * (second - first), None).weight, 4)
            7.5
        """
        tried = [cls(_weight(outputs, combined))]
        rescale = float(getattr(pipe, "guidance_rescale", 0.0) or 0.0)
        if rescale:
            tried.append(cls(float(pipe.guidance_scale), rescale))
        errors = [_distance(guidance.combine(outputs), combined) for guidance in tried]
        tolerance = max(_TOLERANCES.get(tensor.dtype, _TOLERANCE) for tensor in (*outputs, combined))
        found = next((one for one, error in zip(tried, errors, strict=True) if error <= tolerance), None)
        if found is None:
            raise ValueError(
                f"What {type(pipe).__name__} hands to its scheduler is not a combination u + w (c - u) of the outputs "
                f"of its denoiser (w = {tried[0].weight:.4g} leaves {min(errors):.1e} of it, {tolerance:g} is allowed)"
                ": it has another guidance, which a look-ahead cannot repeat. Use plain classifier-free guidance, or "
                "lookahead=1."
            )
        return found


def _weight(outputs: Sequence[Tensor], combined: Tensor) -> float:
    """Least squares for w in combined = first + w (second - first); 1 where the two are the same."""
    if len(outputs) == 1:
        return 1.0
    first, second = (output.to(torch.float32) for output in outputs)
    difference = (second - first).flatten()
    norm = difference.dot(difference)
    return float((combined.to(torch.float32) - first).flatten().dot(difference) / norm) if norm > 0 else 1.0


def _distance(made: Tensor, combined: Tensor) -> float:
    """Relative to the norm of what the scheduler got; infinite where one of them is not finite."""
    combined = combined.to(torch.float32)
    error = float((made - combined).norm() / combined.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return error if math.isfinite(error) else math.inf


@dataclass(frozen=True)
class _Call:
    """One call of the denoiser in a step, with the names of its parameters."""

    names: Sequence[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def given(self) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self.names, self.args, strict=False)) | self.kwargs

    @property
    def sample(self) -> Tensor:
        """What the denoiser got of the samples: the first argument of all denoisers."""
        sample: Tensor = self.given[self.names[0]]
        return sample

    def with_others(self, **others: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with some of them replaced, each where it stood."""
        args = tuple(others.get(name, value) for name, value in zip(self.names, self.args, strict=False))
        return args, {name: others.get(name, value) for name, value in self.kwargs.items()}


@dataclass(frozen=True)
class _Step:
    """What the scheduler got after these calls, and its samples as the denoiser should have got them."""

    model_output: Tensor
    timestep: Any
    sample: Tensor
    scaled: Tensor


class RepeatedDenoiser:
    """A pipeline's denoiser as a function of sample and timestep, with everything else as in the step that runs.

    Its calls run through the same hooks as the pipeline's own: they are counted, split into micro-batches, and their
    conditions follow the particles.

    Args:
        pipe: the wrapped pipeline.
        denoiser: of it.
    """

    def __init__(self, pipe: Any, denoiser: nn.Module) -> None:
        self._pipe, self._denoiser = pipe, denoiser
        kind: Any = type(getattr(denoiser, "_orig_mod", denoiser))  # of a compiled one
        self._names = list(inspect.signature(kind.forward).parameters)[1:]
        self._signature: inspect.Signature | None = None  # of the step, read once: at every step it would be felt
        self._calls: list[_Call] = []
        self._step: _Step | None = None
        self._guidance: Guidance | None = None
        self._repeats = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of each step of the pipeline's scheduler inside the block; enter it after `steer`."""
        with ExitStack() as stack:
            stack.enter_context(wrap_forward(self._denoiser, self._recorded))
            stack.enter_context(wrap_method(self._pipe.scheduler, "step", self._stepping))
            yield

    def __call__(self, sample: Tensor, timestep: Any) -> Tensor:
        """What the scheduler would get `(B, C, ...)` float32, at another sample `(B, C, ...)` and timestep.

        The scheduler has to stand at that timestep.

        Raises:
            ValueError: for calls that cannot be repeated, or whose outputs are combined in an unknown way.
        """
        guidance, step = self._read(), self._now()
        outputs = [self._ask(call, sample, timestep) for call in self._calls]
        return guidance.combine(_outputs(outputs, step))

    def conditional(self, sample: Tensor, timestep: Any) -> Tensor:
        """The output at the prompt alone `(B, C, ...)` float32, without guidance: B rows.

        Raises:
            ValueError: as above.
        """
        guidance, step = self._read(), self._now()
        call = self._calls[-1 if guidance.is_second else 0]
        blocks = len(call.output) // len(step.sample)
        place = blocks - 1 if guidance.is_second else 0
        output = self._ask(_block(call, place, blocks), sample, timestep)
        return _outputs([output], step)[0].to(torch.float32)

    def _recorded(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        if not self._repeats:
            self._calls.append(_Call(self._names, args, kwargs, first_field(output)))
        return output

    def _stepping(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._signature is None:
            self._signature = inspect.signature(step)
        given = self._signature.bind(*args, **kwargs).arguments
        model_output, timestep, sample = (given[name] for name in ("model_output", "timestep", "sample"))
        # scaled at once: when the look-ahead asks, the scheduler stands at another level
        self._step = _Step(model_output, timestep, sample, self._scaled(sample, timestep))
        try:
            return step(*args, **kwargs)
        finally:
            self._calls, self._step, self._guidance = [], None, None

    def _now(self) -> _Step:
        if self._step is None:
            raise RuntimeError("A look-ahead asks the denoiser within a step of the scheduler.")
        return self._step

    def _read(self) -> Guidance:
        """The guidance of this step, once its calls are known to be those of its sample."""
        if self._guidance is None:
            step = self._now()
            for call in self._calls:
                self._check(call, step)
            outputs = _outputs([call.output for call in self._calls], step)
            if not 1 <= len(outputs) <= _MOST_OUTPUTS:
                self._refuse(f"its step combines {len(outputs)} predictions (perturbed or skip-layer guidance, ...)")
            self._guidance = Guidance.read(outputs, step.model_output, self._pipe)
        return self._guidance

    def _check(self, call: _Call, step: _Step) -> None:
        """Refuse calls whose arguments belong to this sample, or are not known to be sample and timestep."""
        given = call.given
        stale = [name for name, value in given.items() if value is not None and _OF_THE_SAMPLE.fullmatch(name)]
        if stale:
            self._refuse(f"{', '.join(stale)} of its denoiser belong to the sample of this step")
        if not _equal(call.sample, _blocks_like(call, step.scaled)):
            self._refuse("its denoiser gets something else than the samples of the step")
        if not _equal(torch.as_tensor(given["timestep"]), _timestep_like(given["timestep"], step, step.timestep)):
            self._refuse("its denoiser gets another timestep than the scheduler")

    def _scaled(self, sample: Tensor, timestep: Any) -> Tensor:
        """Samples as the denoiser gets them; the scheduler stands at this timestep."""
        scale = getattr(self._pipe.scheduler, "scale_model_input", None)
        scaled: Tensor = sample if scale is None else scale(sample, timestep)
        return scaled

    def _ask(self, call: _Call, sample: Tensor, timestep: Any) -> Tensor:
        """The denoiser's output at another sample and timestep."""
        args, kwargs = call.with_others(
            **{self._names[0]: _blocks_like(call, self._scaled(sample, timestep))},
            timestep=_timestep_like(call.given["timestep"], self._now(), timestep),
        )
        self._repeats = True
        try:
            output: Tensor = first_field(self._denoiser(*args, **kwargs))
        finally:
            self._repeats = False
        return output

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"{type(self._pipe).__name__} has no look-ahead here: {reason}. Use lookahead=1.")


def _outputs(outputs: Sequence[Tensor], step: _Step) -> list[Tensor]:
    """The predictions `(B, C, ...)` in the outputs of the calls: of each block of guidance, without a learned sigma."""
    channels, rows = step.model_output.shape[1], len(step.sample)
    blocks = [block for output in outputs for block in output.split(rows)]
    return [block[:, :channels] if block.shape[1] == 2 * channels else block for block in blocks]


def _timestep_like(recorded: Any, step: _Step, timestep: Any) -> Tensor:
    """A timestep in the form in which the denoiser got that of the step: shape, type, and Flux's thousandths."""
    form = torch.as_tensor(recorded)

    def formed(value: Any) -> Tensor:
        return torch.as_tensor(value).to(form.device, form.dtype).expand(form.shape)

    is_plain = torch.equal(form, formed(step.timestep))
    return formed(timestep) if is_plain else formed(timestep) / _FLUX_SCALE


def _blocks_like(call: _Call, sample: Tensor) -> Tensor:
    """Samples as often one after the other as in this call, and of its type."""
    return torch.cat([sample] * max(1, len(call.sample) // len(sample))).to(call.sample.dtype)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _block(call: _Call, place: int, blocks: int) -> _Call:
    """A call with one of the blocks of guidance alone."""
    if blocks == 1:
        return call
    # conditions have the rows that the pipeline began with, which are brought to the size of the sample on their way
    rows = {len(call.sample), *(len(v) for n, v in call.given.items() if n == "encoder_hidden_states")}
    args, kwargs = call.args, call.kwargs
    for number in rows:
        layout = BatchLayout(blocks, number // blocks)
        args, kwargs = layout.block(args, place), layout.block(kwargs, place)
    return _Call(call.names, args, kwargs, call.output)
