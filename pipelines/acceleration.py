"""`torch.compile` for the blocks of denoiser and reward, and channels-last memory for convolutions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from fk_reward.pipelines.hooks import find_denoisers
from fk_reward.pipelines.pipeline_state import stateful_hooks

if TYPE_CHECKING:
    from fk_reward.pipelines.fk_steering_pipeline import FKSteeringPipeline

logger = logging.getLogger(__name__)

Mode = Literal["default", "max-autotune-no-cudagraphs"]
"""Modes of `torch.compile` without CUDA graphs, which overwrite the output of one micro-batch with that of the next."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What is compiled, and how: the arguments of `torch.compile`.

    Attributes:
        backend: name of a backend, or a function that is one.
        mode: see `Mode`.
        dynamic: as `torch.compile` takes it: None to compile for the first batch size, and for any from the second
            on; True for any at once, False for each size anew.
        whole_denoiser: the denoiser in one piece, convolutions included, instead of its repeated blocks only: faster
            to run, and many times slower to compile.

    Raises:
        ValueError: for another mode.

    Example:
        >>> Compilation(mode="reduce-overhead")
        Traceback (most recent call last):
        ValueError: mode should be one of 'default', 'max-autotune-no-cudagraphs', got 'reduce-overhead': ...
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: Mode = "default"
    dynamic: bool | None = None
    whole_denoiser: bool = False

    def __post_init__(self) -> None:
        """Refuse the modes with CUDA graphs."""
        if self.mode not in get_args(Mode):
            raise ValueError(
                f"mode should be one of {', '.join(map(repr, get_args(Mode)))}, got {self.mode!r}: CUDA graphs would "
                "overwrite the output of one micro-batch with that of the next."
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `torch.compile`."""
        return {"backend": self.backend, "mode": self.mode, "dynamic": self.dynamic}


def speed_up(
    pipe: FKSteeringPipeline, *, compile: bool | Compilation | None = None, channels_last: bool | None = None
) -> None:
    """Compile the denoiser and the reward, and lay their convolutions out with channels last; in place, at once.

    Compiled are the repeated blocks: those that Diffusers names for its model, else the members of each list of like
    modules. A block is compiled once for all of its kind; modules, their names and their weights stay what they are.
    Channels-last are denoiser, ControlNet, autoencoder and a preview that is one. Neither is bit-exact.

    Call it again where `pipe.unet`, `pipe.reward`, ... were exchanged later on; rewards on one backbone share its
    compiled blocks.

    Args:
        pipe: changed in place.
        compile: True or a `Compilation` to compile, False to take it back, None to leave it as it is.
        channels_last: True, False for the usual layout, None to leave it as it is.

    Raises:
        ValueError: for a pipeline without a denoiser; blocks that are offloaded one by one (`device_map`,
            `enable_sequential_cpu_offload`), or a whole denoiser that is offloaded; a denoiser without repeated blocks;
            weights that are not in memory, for `channels_last`.
        RuntimeError: when the backend cannot compile here, for want of a C++ compiler or of Triton.

    Example:
        >>> from fk_reward.pipelines import FKSteeringPipeline
        >>> pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-clipscore")
        >>> speed_up(pipe, channels_last=True)
        >>> pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    if compile is not None:
        _forget_compiled([*_denoisers(pipe), *pipe.reward.modules_to_compile()])
    if compile:
        _compile(pipe, Compilation() if compile is True else compile)
    if channels_last is not None:
        _lay_out(pipe, torch.channels_last if channels_last else torch.contiguous_format)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that make up most of a network: those that Diffusers names, else members of lists of like modules.

    Example:
        >>> layers = nn.ModuleList([nn.TransformerEncoderLayer(4, 1) for _ in range(3)])
        >>> len(repeated_blocks(nn.Sequential(nn.Linear(4, 4), layers)))
        3
    """
    if named := getattr(module, "_repeated_blocks", None):
        return [block for block in module.modules() if type(block).__name__ in named]
    if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1 and any(module[0].children()):
        return list(module)
    return [block for child in module.children() for block in repeated_blocks(child)]


def check_compiler(compilation: Compilation, devices: Iterable[torch.device]) -> None:
    """Compile one addition on each device, so that a backend that does not work here says so before it is needed.

    Raises:
        RuntimeError: when it does not work, with what to do.

    Example:
        >>> check_compiler(Compilation(backend="eager"), [torch.device("cpu")])
    """
    for device in dict.fromkeys(devices):
        try:
            torch.compile(_add_one, **compilation.arguments)(torch.zeros(2, device=device))
        except RuntimeError as error:
            raise RuntimeError(
                f"torch.compile does not work with backend {compilation.backend!r} on {device}: {error}\nThe backend "
                "'inductor' needs a C++ compiler (g++, clang or MSVC; the environment variable CXX names another) and, "
                "on a GPU, Triton. Install them, or leave compile out."
            ) from error


def devices_of(pipe: FKSteeringPipeline) -> list[torch.device]:
    """Where denoiser and reward run, which with `enable_model_cpu_offload` is not where they rest."""
    places = [pipe.pipe._execution_device, pipe.reward.device if pipe.reward.modules_to_compile() else None]
    return [place for place in places if place is not None]


def _add_one(x: Tensor) -> Tensor:
    return x + 1


def _compile(pipe: FKSteeringPipeline, compilation: Compilation) -> None:
    denoisers, scorers = _denoisers(pipe), pipe.reward.modules_to_compile()
    chosen = [block for module in denoisers for block in _chosen(module, compilation)]
    of_reward = [block for module in scorers for block in repeated_blocks(module)]
    if scorers and not of_reward:
        logger.warning("Reward %r has no repeated blocks and is not compiled.", pipe.reward.card.name)
    _check_caches(denoisers)
    _check_offload([*chosen, *of_reward])
    check_compiler(compilation, devices_of(pipe))
    for block in dict.fromkeys([*chosen, *of_reward]):
        block.compile(**compilation.arguments)


def _denoisers(pipe: FKSteeringPipeline) -> list[nn.Module]:
    found = find_denoisers(pipe)
    if not found:
        raise ValueError(f"{type(pipe.pipe).__name__} has no unet and no transformer, so there is nothing to compile.")
    return found


def _chosen(denoiser: nn.Module, compilation: Compilation) -> list[nn.Module]:
    blocks = [denoiser] if compilation.whole_denoiser else repeated_blocks(denoiser)
    if not blocks:
        raise ValueError(
            f"{type(denoiser).__name__} has no repeated blocks; compile=Compilation(whole_denoiser=True) compiles it "
            "in one piece."
        )
    return blocks


def _check_caches(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if caches := [type(hook).__name__ for hook in stateful_hooks(module)]:
            raise ValueError(
                f"{type(module).__name__} keeps a cache from one call to the next ({caches[0]}), which compiled code "
                "would pass by: call its disable_cache() or remove_cache_schedule(pipe), or leave compile out."
            )


def _check_offload(blocks: Iterable[nn.Module]) -> None:
    for block in blocks:
        if any(hasattr(module, "_hf_hook") for module in block.modules()):
            raise ValueError(
                f"The weights of {type(block).__name__} come and go with each call (device_map, CPU offload), which "
                "cannot be compiled. Use pipe.enable_model_cpu_offload(), which moves whole models, with compile=True "
                "for their blocks, and no device_map for the reward; or leave compile out."
            )


def _forget_compiled(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for part in module.modules():
            part._compiled_call_impl = None


def _lay_out(pipe: FKSteeringPipeline, memory_format: torch.memory_format) -> None:
    networks = [*find_denoisers(pipe), getattr(pipe, "vae", None), pipe.preview]
    modules = [network for network in networks if isinstance(network, nn.Module)]
    for module in modules:
        if any(weight.is_meta for weight in module.parameters()):
            raise ValueError(
                f"The weights of {type(module).__name__} are not in memory, so that their layout cannot be changed: "
                "call speed_up(channels_last=...) before enable_sequential_cpu_offload()."
            )
    for module in modules:
        module.to(memory_format=memory_format)  # type: ignore[call-overload]
