"""The wrapped pipeline's call while it runs: its epilogue, what its last step returned, and what it decoded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fk_reward.pipelines.epilogue import (
    CannotDecodeError,
    DecodeFn,
    DecodeHook,
    Epilogue,
    LaterStageError,
    NoImagesError,
    NoLoopError,
    StepResult,
    as_tensor,
    autoencoders,
    first_field,
    refuse_later_stages,
)
from fk_reward.pipelines.hooks import find_denoisers, wrap_forward, wrap_method


class RunningCall:
    """Watches one call of a pipeline, so that its epilogue can run early, and what it decodes is decoded once.

    Whether the epilogue can run is checked before the first step (`Epilogue.check`), at the denoiser's first call
    inside the loop, so that a long run does not end in an error that could have come first. Where the denoiser is not
    known, it is checked at the first step.

    Args:
        pipe: the pipeline.
        output_type: of the call.
        sizes: numbers of rows of the samples that will be decoded, as far as they are known.
        decodes: whether predictions are decoded during the run.
        preview: decodes them instead of the epilogue.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        output_type: str,
        sizes: Sequence[int] = (),
        decodes: bool = True,
        preview: DecodeFn | None = None,
    ) -> None:
        self._pipe = pipe
        self.output_type = output_type
        self._sizes = tuple(sizes)
        self._decodes = decodes
        self._preview = preview
        self._epilogue: Epilogue | None = None
        self._signature: inspect.Signature | None = None  # of the step, read once: at every step it would be felt
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._result: Any = None
        self._decoded: list[Any] = []
        self._is_ours = False  # whether the epilogue that decodes right now is one that we run
        self._is_checked = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the steps of the pipeline's scheduler and its autoencoders inside the block.

        Enter it after `steer`, so that it sees what `steer` makes of a step. The last step stays known until `close`.

        Raises:
            ValueError: inside the block, before the first step, for a pipeline whose samples cannot be decoded.
        """
        with ExitStack() as stack:
            for denoiser in find_denoisers(self._pipe):
                stack.enter_context(wrap_forward(denoiser, self._denoised))
            stack.enter_context(wrap_method(self._pipe.scheduler, "step", self._step))
            for autoencoder in autoencoders(self._pipe).values():
                stack.enter_context(wrap_method(autoencoder, "decode", self._recorded))
            yield

    @property
    def last_sample(self) -> Tensor:
        """`(B, ...)`, the sample that the last step of the scheduler returned.

        Raises:
            RuntimeError: when no step has run.
        """
        if self._result is None:
            raise RuntimeError(
                f"{type(self._pipe).__name__} never called the step of its scheduler: nothing was drawn."
            )
        sample: Tensor = self._result[0]
        return sample

    def close(self) -> None:
        """Free the variables of the call."""
        self._epilogue, self._result, self._decoded = None, None, []

    def images(self, sample: Tensor, *, decode: DecodeHook | None = None) -> Tensor:
        """The images `(B, 3, H, W)` in [0, 1] of a predicted clean sample `(B, ...)`, as the pipeline would decode it.

        Raises:
            CannotDecodeError: when the epilogue cannot run.
        """
        if self._epilogue is None:
            raise CannotDecodeError("its loop over the steps is not running")
        return self._run(self._epilogue, StepResult.of(sample.to(self._dtype)), decode)

    def finished(self, returned: Any, *, predicted: Tensor | None = None) -> Tensor:
        """The finished images `(B, 3, H, W)` float32 in [0, 1], whatever the call returned them as.

        They are the output of the autoencoder, before rounding to 8 bits, watermark and safety checker.

        Args:
            returned: what the call returned: images or latents.
            predicted: a clean sample to decode instead.

        Raises:
            CannotDecodeError: when neither the epilogue can run nor the images be read.
        """
        is_latent = self.output_type == "latent" or predicted is not None
        returned = returned if predicted is None else predicted
        if self._epilogue is None:
            # a copy, as a function may write to it
            return self._preview(returned.clone()) if is_latent and self._preview is not None else as_tensor(returned)
        if predicted is not None:
            return self.images(predicted)
        if is_latent:
            return self._run(self._epilogue, self._last_of(self._epilogue, returned), None)
        # the call has just decoded these latents: its epilogue runs once more on the outputs of the autoencoder
        outputs = iter(self._decoded)
        self._decoded = []  # so that each is freed once it has been used

        def replay(autoencoder: nn.Module, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = next(outputs, None)
            return autoencoder.decode(latents, *args, **kwargs) if output is None else output  # type: ignore[operator]

        return self._run(self._epilogue, self._result, replay)

    def _last_of(self, epilogue: Epilogue, latents: Any) -> Any:
        """The result of the step that these latents come from.

        A `callback_on_step_end` may have changed them after the last step, which no result of a step shows.
        """
        changed = isinstance(latents, Tensor) and tuple(latents.shape) == self._shape
        for result in (self._result, *([StepResult.of(latents.clone())] if changed else [])):
            again = first_field(epilogue.returned(result, output_type="latent"))
            if isinstance(again, Tensor) and torch.equal(again, latents):
                return result
        return self._result

    def _run(self, epilogue: Epilogue, result: Any, decode: DecodeHook | None) -> Tensor:
        self._is_ours = True
        try:
            return epilogue.images(result, decode=decode)
        finally:
            self._is_ours = False

    def _denoised(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_checked:
            with contextlib.suppress(NoLoopError):  # some denoisers are called before the loop, to fill a cache
                self._check()
        return call(*args, **kwargs)

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_checked:
            try:
                self._check()
            except NoLoopError as error:
                self._refuse(error)
            self._is_checked = True
        self._decoded.clear()
        with contextlib.suppress(CannotDecodeError):  # `_check` has raised already where it matters
            self._epilogue = Epilogue.of(inspect.currentframe())
        if self._signature is None:
            self._signature = inspect.signature(step)
        sample = self._signature.bind(*args, **kwargs).arguments["sample"]
        self._shape, self._dtype = tuple(sample.shape), sample.dtype
        self._result = step(*args, **kwargs)
        return self._result

    def _check(self) -> None:
        """Raise where the epilogue is needed and cannot run.

        Raises:
            NoLoopError: when the call has not reached its loop.
            ValueError: otherwise.
        """
        frame = inspect.currentframe()
        try:
            epilogue = Epilogue.of(frame)
            self._check_scheduler(epilogue.pipe)
            sample = epilogue.sample()
            self._shape = tuple(sample.shape)
            refuse_later_stages(frame)
            for rows in dict.fromkeys((len(sample), *self._sizes)):
                epilogue.check(sample[:rows])
        except NoLoopError:
            raise
        except CannotDecodeError as error:
            self._refuse(error)
        self._is_checked = True

    def _check_scheduler(self, stage: Any) -> None:
        """Raise for a stage that steps with another scheduler than the one that is watched."""
        ours, its = self._pipe.scheduler, getattr(stage, "scheduler", None)
        if stage is self._pipe or its is ours:
            return
        name = next((name for name, value in vars(self._pipe).items() if value is stage), "the stage")
        raise ValueError(
            f"{type(self._pipe).__name__} has a {type(ours).__name__}, but its {name} steps with a "
            f"{type(its).__name__} of its own: write pipe.{name}.scheduler = pipe.scheduler, or set the scheduler of "
            "FKSteeringPipeline, which does both."
        )

    def _refuse(self, error: CannotDecodeError) -> None:
        """Raise where images are needed that only the epilogue can make."""
        name = type(self._pipe).__name__
        if isinstance(error, NoImagesError):
            raise ValueError(f"{name} cannot be steered: {error}. Wrap a pipeline that returns images.") from error
        if self._decodes and (self._preview is None or isinstance(error, LaterStageError)):
            samples = f"The samples of {name}" + (f", of shape {self._shape}," if self._shape else "")
            raise ValueError(
                f"{samples} cannot be turned into images before its call ends: {error}. "
                f"Remedy: {'; or '.join(error.remedies)}."
            ) from error
        if self.output_type == "pt" or (self.output_type == "latent" and self._preview is None):
            raise ValueError(
                f"The range of the values that {name} returns for output_type={self.output_type!r} cannot be known: "
                f"{error}. Ask for 'np' or 'pil'."
            ) from error

    def _recorded(self, decode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        if not self._is_ours:
            self._decoded.append(output)
        return output
