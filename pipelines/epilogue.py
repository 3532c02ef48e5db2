"""The epilogue of a pipeline's call: its statements after the loop over steps, run early on a sample of our own.

How latents become images is written in one place, the end of each pipeline's `__call__`: unpacking, normalisation,
precision, the autoencoder, crops. Diffusers has no method for it, no two families agree, and a list of what each one
does would be wrong for the next. So the statements after the loop are taken from the source of the call that is
running, compiled, and run with the local variables of that call. No code is copied, and no family has to be known.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Generator, Tensor, nn

from fk_reward.pipelines.hooks import DENOISERS

DecodeFn = Callable[[Tensor], Tensor]
"""Samples `(B, ...)` as the scheduler sees them, to images `(B, 3, H, W)` in [0, 1]."""
DecodeHook = Callable[..., Any]
"""`(autoencoder, latents, *args, **kwargs)` instead of `autoencoder.decode(latents, *args, **kwargs)`."""

_RESULT = "_step_result"
# No user sees a prediction, and checking it would cost a forward pass and black out what may become a harmless image.
_NOT_AT_SCORING = ("safety_checker", "watermark", "watermarker")
# Parts of the names of outputs that are no images: videos, sounds, and the embeddings of a prior.
_NOT_IMAGES = ("frame", "video", "audio", "embed")
_PREVIEW = (
    "pass FKSteeringPipeline(pipe, reward=..., preview=...), a function of these samples to images (B, 3, H, W) in "
    "[0, 1]"
)
_BEST_OF_K = "search='best-of-n' (num_resamples=0), which scores finished images alone"


class CannotDecodeError(ValueError):
    """The epilogue of this call cannot run on another sample.

    Attributes:
        remedies: what the user can do, besides choosing another pipeline.
    """

    remedies: tuple[str, ...] = (_PREVIEW, _BEST_OF_K)


class NoLoopError(CannotDecodeError):
    """No loop over the steps of a scheduler is running."""


class LaterStageError(CannotDecodeError):
    """Another stage makes the images, after the one whose steps are watched."""

    remedies = (_BEST_OF_K,)


class NoImagesError(CannotDecodeError):
    """The call returns something else than images."""

    remedies = ()


class StepResult(tuple[Tensor, Tensor]):
    """The result of a scheduler's `step`, with the same sample in every place where a pipeline may read it.

    Pipelines of consistency models read the predicted clean sample, the second entry; the others read the first.

    Example:
        >>> result = StepResult.of(torch.zeros(1))
        >>> result[0] is result[1] is result.prev_sample is result.pred_original_sample
        True
    """

    __slots__ = ()

    @classmethod
    def of(cls, sample: Tensor) -> StepResult:
        """The result that holds this sample."""
        return cls((sample, sample))

    prev_sample = pred_original_sample = denoised = property(lambda self: self[0])


@dataclass(frozen=True)
class CompiledEpilogue:
    """The statements after the loop of one `__call__`, compiled.

    Attributes:
        body: code of a function of `(step_result, *names)`; returns what the call returns.
        sample: code of a function of `(*names)`; returns the sample that the step gets.
        names: local variables that both read.
        returns: fields of the call's output, where its source names them.
    """

    body: CodeType
    sample: CodeType
    names: tuple[str, ...]
    returns: tuple[str, ...]


@dataclass(frozen=True)
class Epilogue:
    """The epilogue of one call that is running.

    Attributes:
        pipe: whose `__call__` runs; a stage, where a combined pipeline calls its stages.
        code: the statements.
        values: the call's local variables that they read, by name.
        module: their global variables.
    """

    pipe: Any
    code: CompiledEpilogue
    values: Mapping[str, Any]
    module: dict[str, Any]

    @classmethod
    def of(cls, frame: FrameType | None) -> Epilogue:
        """The epilogue of the innermost loop over steps that a frame is called from.

        Raises:
            NoLoopError: where no pipeline's loop is found.
            CannotDecodeError: where its source is missing, or its steps stand in several loops.
        """
        # A pipeline keeps what its decoding needs (height, image ids, ...) in local variables, which no callback of
        # Diffusers hands out in full: its frame is the only place to read them.
        while frame is not None:
            pipe = _pipeline_of(frame)
            code = None if pipe is None else find_epilogue(frame.f_code, frame.f_lineno)
            if code is not None:
                values = dict(frame.f_locals)
                read = {name: values[name] for name in code.names if name in values}
                return cls(pipe, code, read, frame.f_globals)
            frame = frame.f_back
        raise NoLoopError("no loop over the steps of a scheduler was found in the source of its call")

    def sample(self) -> Tensor:
        """The sample that the next step gets, `(B, ...)`."""
        return FunctionType(self.code.sample, self.module)(*self._arguments())

    def images(self, result: Any, *, decode: DecodeHook | None = None) -> Tensor:
        """The images that this call would return if the last step had returned `result`.

        The safety checker and the watermark are left out, and the pipeline, its autoencoder's precision and all random
        numbers are afterwards as before.

        Args:
            result: what `scheduler.step` returned, or a `StepResult`.
            decode: runs in the place of the autoencoder's `decode`.

        Returns:
            `(B, 3, H, W)` float32 in [0, 1].

        Raises:
            CannotDecodeError: when the statements fail on this sample, or give no images.
        """
        returned = self.returned(result, output_type="np", decode=decode)
        return as_tensor(first_field(returned)).to(_sample_of(result).device)

    def returned(self, result: Any, *, output_type: str, decode: DecodeHook | None = None) -> Any:
        """What this call would return for this output type; see `images`."""
        values: dict[str, Any] = {"self": _stand_in(self.pipe, decode), "output_type": output_type, "return_dict": True}
        with _unchanged(autoencoders(self.pipe).values(), _sample_of(result).device):
            try:
                return FunctionType(self.code.body, self.module)(result, *self._arguments(values))
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, AttributeError, KeyError, IndexError, NameError, RuntimeError) as error:
                # whatever the statements raise on a sample that they were not written for
                raise CannotDecodeError(f"the end of its call failed: {type(error).__name__}: {error}") from error

    def check(self, sample: Tensor) -> None:
        """Find out cheaply whether a sample can be decoded: run until the autoencoder would be called.

        Raises:
            CannotDecodeError: if not.
        """
        first = next(iter(self.code.returns), "")
        if any(part in first for part in _NOT_IMAGES):
            raise NoImagesError(f"it returns {first}, and a reward reads images")
        if not autoencoders(self.pipe) and (sample.ndim != 4 or sample.shape[1] != 3):
            raise CannotDecodeError("it has neither an autoencoder nor samples that are RGB images")

        def stop(autoencoder: nn.Module, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            raise _DecoderReached

        try:
            self.images(StepResult.of(sample), decode=stop)
        except _DecoderReached:
            return

    def _arguments(self, replaced: Mapping[str, Any] | None = None) -> list[Any]:
        values = {**self.values, **(replaced or {})}
        if replaced is not None and "generator" in values:
            values["generator"] = _cloned(values["generator"])
        return [values.get(name) for name in self.code.names]


def _sample_of(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result.prev_sample


class _DecoderReached(Exception):  # noqa: N818 (a signal, and no error)
    """The autoencoder would be called now."""


def autoencoders(pipe: Any) -> dict[str, nn.Module]:
    """The modules of a pipeline that turn latents into pixels, by attribute.

    Example:
        >>> from types import SimpleNamespace
        >>> from diffusers import AutoencoderTiny
        >>> list(autoencoders(SimpleNamespace(vae=AutoencoderTiny(), unet=nn.Linear(1, 1))))
        ['vae']
    """
    modules = {name: value for name, value in vars(pipe).items() if isinstance(value, nn.Module)}
    return {name: module for name, module in modules.items() if callable(getattr(module, "decode", None))}


def first_field(output: Any) -> Any:
    """The images of a pipeline's output, whatever their field is called.

    Example:
        >>> from types import SimpleNamespace
        >>> first_field(("image", None))
        'image'
    """
    if hasattr(output, "to_tuple"):  # Diffusers' BaseOutput
        return output.to_tuple()[0]
    return output[0] if isinstance(output, tuple) else output


def as_tensor(images: Any) -> Tensor:
    """Images as a pipeline returns them, to `(B, 3, H, W)` float32 in [0, 1].

    Args:
        images: a tensor `(B, 3, H, W)` or an array `(B, H, W, 3)` in [0, 1], a list of such images without B, or PIL
            images. A fourth channel is their opacity: they are laid over white.

    Raises:
        NoImagesError: for anything else.

    Example:
        >>> as_tensor([Image.new("RGB", (4, 2), "white")]).shape
        torch.Size([1, 3, 2, 4])
    """
    if isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        mode = "RGBA" if any("A" in image.getbands() for image in images) else "RGB"
        images = np.stack([np.asarray(image.convert(mode), dtype=np.float32) / 255 for image in images])
    elif isinstance(images, list | tuple) and images and all(isinstance(image, np.ndarray) for image in images):
        images = np.stack(images)
    elif isinstance(images, list | tuple) and images and all(isinstance(image, Tensor) for image in images):
        images = torch.stack(list(images))
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 4:  # transparent: over white, as files
        images = images[:, :3] * images[:, 3:] + (1 - images[:, 3:])
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        shape = f" of shape {tuple(images.shape)}" if hasattr(images, "shape") else ""
        raise NoImagesError(f"its output is no batch of RGB images, got {type(images).__name__}{shape}")
    return images.float()


@functools.cache
def find_epilogue(code: CodeType, line: int) -> CompiledEpilogue | None:
    """The epilogue of the loop over steps around a line of a function; None where there is no such loop.

    Raises:
        CannotDecodeError: for steps in a loop within a loop, of which none gives the complete sample.
    """
    function = _syntax_tree(code)
    path = [] if function is None else _path(function.body, line)
    loop = next((place for place, (block, i) in enumerate(path) if isinstance(block[i], ast.For | ast.While)), None)
    if loop is None:
        return None
    block, i = path[loop]
    steps = sorted(filter(_step_of, ast.walk(block[i])), key=lambda node: node.lineno)  # type: ignore[attr-defined]
    if not steps:
        return None
    # the step that is running; before the first one, where the denoiser is called, the first of the loop
    statement: Any = next((step for step in steps if step.lineno <= line <= step.end_lineno), steps[0])  # type: ignore
    around = _path(block[i : i + 1], statement.lineno)
    if sum(isinstance(outer[j], ast.For | ast.While) for outer, j in around) != 1:
        raise CannotDecodeError(f"its steps stand in a loop within a loop (line {statement.lineno} of its source)")
    after = [after for outer, j in reversed(path[: loop + 1]) for after in outer[j + 1 :]]
    return _compiled(code, statement, list(_without_clean_up(after)))


@functools.cache  # parsing a pipeline's module takes tens of milliseconds, and every step asks
def _syntax_tree(code: CodeType) -> ast.FunctionDef | None:
    try:
        lines, _ = inspect.findsource(code)
    except (OSError, TypeError):
        return None
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


def _path(block: Sequence[ast.stmt], line: int) -> list[tuple[Sequence[ast.stmt], int]]:
    """The blocks around a line, each with the place of the statement that holds it, from the outside in."""
    for i, statement in enumerate(block):
        if statement.lineno <= line <= (statement.end_lineno or line):
            inner = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
            inner += [handler.body for handler in getattr(statement, "handlers", [])]
            return [(block, i), *next(filter(None, (_path(part, line) for part in inner)), [])]
    return []


def _step_of(statement: ast.AST) -> ast.Call | None:
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return None
    for node in ast.walk(statement.value):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step":
            return node if "scheduler" in ast.unparse(node.func.value) else None
    return None


def _without_clean_up(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Leave out calls whose result is not used on variables that are not read: they free what later steps need.

    One is `progress_bar.close()`; others empty a cache that the denoiser reads at the next step.
    """
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            called = statement.value.func
            owner = called.value if isinstance(called, ast.Attribute) else called
            others = [node for other in statements if other is not statement for node in ast.walk(other)]
            if isinstance(owner, ast.Name) and not any(isinstance(n, ast.Name) and n.id == owner.id for n in others):
                continue
        yield statement


def _compiled(code: CodeType, statement: ast.stmt, after: list[ast.stmt]) -> CompiledEpilogue:
    step = _step_of(statement)
    given = [] if step is None else [keyword.value for keyword in step.keywords if keyword.arg == "sample"]
    sample = [*given, *(step.args[2:3] if step is not None else [])]
    if step is None or not sample:
        raise CannotDecodeError(f"its step gets no sample (line {statement.lineno} of its source)")
    replaced: ast.stmt = _WithResult(step).visit(copy.deepcopy(statement))
    nodes = [node for part in (replaced, sample[0], *after) for node in ast.walk(part)]
    local = {*code.co_varnames, *code.co_cellvars}
    names = tuple(sorted({node.id for node in nodes if isinstance(node, ast.Name) and node.id in local}))
    returned = [node.value for node in nodes if isinstance(node, ast.Return) and isinstance(node.value, ast.Call)]
    return CompiledEpilogue(
        body=_function((_RESULT, *names), [replaced, *after], code.co_filename),
        sample=_function(names, [ast.Return(sample[0])], code.co_filename),
        names=names,
        returns=tuple(dict.fromkeys(keyword.arg for call in returned for keyword in call.keywords if keyword.arg)),
    )


class _WithResult(ast.NodeTransformer):
    """Replaces the call of the step by a variable."""

    def __init__(self, step: ast.Call) -> None:
        self._text = ast.dump(step)

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802 (the name that ast asks for)
        is_step = ast.dump(node) == self._text
        return ast.copy_location(ast.Name(_RESULT, ast.Load()), node) if is_step else self.generic_visit(node)


def _function(parameters: Sequence[str], body: list[ast.stmt], filename: str) -> CodeType:
    """The code of a function of these statements, at their own lines: a traceback shows the pipeline's source."""
    arguments = ast.arguments(
        posonlyargs=[], args=[ast.arg(name) for name in parameters], kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    definition = ast.FunctionDef("epilogue", arguments, body, [], lineno=1, col_offset=0)
    definition.type_params = []  # type: ignore[attr-defined] # of Python 3.12
    module = compile(ast.fix_missing_locations(ast.Module([definition], [])), filename, "exec")
    return next(part for part in module.co_consts if isinstance(part, CodeType))


def refuse_later_stages(frame: FrameType | None) -> None:
    """Raise where a combined pipeline calls another stage after the one that is running.

    Raises:
        LaterStageError: if so; the images are those of the later stage.
    """
    while frame is not None:
        pipe = _pipeline_of(frame)
        function = None if pipe is None else _syntax_tree(frame.f_code)
        for name in [] if function is None else _called_after(function, frame.f_lineno):
            if isinstance(getattr(pipe, name, None), DiffusionPipeline):
                raise LaterStageError(f"another stage ({name}) follows the one whose steps are watched")
        frame = frame.f_back


@functools.cache
def _called_after(function: ast.FunctionDef, line: int) -> list[str]:
    after = [statement for block, i in _path(function.body, line) for statement in block[i + 1 :]]
    called = [node.func for statement in after for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return [c.attr for c in called if isinstance(c, ast.Attribute) and ast.unparse(c.value) == "self"]


def _pipeline_of(frame: FrameType) -> Any:
    """The pipeline whose method a frame runs; None for any other frame."""
    owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
    return owner if isinstance(owner, DiffusionPipeline) else None


class _Tensors:
    """An image processor that returns tensors instead of arrays: the same numbers, on their device still."""

    def __init__(self, processor: VaeImageProcessor) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: list[bool] | None = None) -> Any:
        as_asked = "pt" if output_type == "np" else output_type
        return self._processor.postprocess(image, output_type=as_asked, do_denormalize=do_denormalize)


class _Idle:
    """A denoiser whose attributes can be read, and whose methods do nothing.

    Some pipelines end by putting attention processors back (perturbed attention), which later steps still need.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._denoiser, name)
        return (lambda *args, **kwargs: None) if inspect.ismethod(value) else value


class _Decoding:
    def __init__(self, autoencoder: nn.Module, decode: DecodeHook) -> None:
        self._autoencoder = autoencoder
        self._decode = decode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._autoencoder, name)

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(self._autoencoder, z, *args, **kwargs)


def _stand_in(pipe: Any, decode: DecodeHook | None) -> Any:
    """A shallow copy of a pipeline whose attributes the epilogue may write, without safety checker and watermark."""
    stand_in: Any = object.__new__(type(pipe))  # `__init__` and `register_modules` would check and move the models
    values = {**vars(pipe), **{name: None for name in _NOT_AT_SCORING if name in vars(pipe)}}
    for name, value in values.items():
        if isinstance(value, VaeImageProcessor) and type(value).postprocess is VaeImageProcessor.postprocess:
            values[name] = _Tensors(value)
    if decode is not None:
        values |= {name: _Decoding(module, decode) for name, module in autoencoders(pipe).items()}
    values |= {name: _Idle(values[name]) for name in DENOISERS if isinstance(values.get(name), nn.Module)}
    # the last statement of most pipelines offloads all models, which the next step would have to load again
    vars(stand_in).update(values, maybe_free_model_hooks=lambda: None)
    return stand_in


@contextmanager
def _unchanged(modules: Iterator[nn.Module] | Any, device: torch.device) -> Iterator[None]:
    """Restore the precision of modules and the global random state.

    SDXL and others upcast the autoencoder to float32 for decoding, and some leave it so. Decoders that draw noise would
    take random numbers from the steps that follow.
    """
    dtypes = [(module, _precision(module)) for module in modules]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, dtype in dtypes:
            if dtype is not None and _precision(module) != dtype:
                nn.Module.to(module, dtype=dtype)  # not the `to` of Diffusers, which warns of float16


def _precision(module: nn.Module) -> torch.dtype | None:
    # of the first weight: Diffusers' `dtype` walks through all of the module
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)


def _cloned(generator: Any) -> Any:
    """Copies of generators: a decoder that draws noise must not take it from the steps that follow."""
    if not isinstance(generator, Generator):
        return [_cloned(one) for one in generator] if isinstance(generator, list | tuple) else generator
    clone = Generator(generator.device)
    clone.set_state(generator.get_state())
    return clone
