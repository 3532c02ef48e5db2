"""Every argument of a steered call, checked by kind and range before anything is spent on it.

Diffusers checks some of them, some only after the text encoders, and others never: an `eta` of 2 ends in NaN after the
whole run. What is expected is read off the annotations of the wrapped pipeline's `__call__`; ranges go by name.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Generator, Tensor

from fk_reward.number_checks import real_number, whole_number
from fk_reward.user_text import did_you_mean

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

_AT_LEAST: Final[dict[str, int]] = {
    **dict.fromkeys(("num_inference_steps", "prior_num_inference_steps", "height", "width"), 1),
    **dict.fromkeys(("max_sequence_length", "callback_steps"), 1),
    "clip_skip": 0,
}
_IMAGE_SIDES: Final = 3
_UNIT_RANGE: Final = ("eta", "guidance_rescale", "strength")
"""Of eta above 1 the variance that is left for the direction is negative, and its root NaN."""


_TEXTS: Final = re.compile(r"(negative_)?prompt(_\d)?")
_EMBEDS: Final = re.compile(r"(negative_)?(pooled_)?prompt_embeds(_\d)?")


def check_arguments(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check each argument of the wrapped pipeline's call on its own.

    Args:
        pipe: the wrapped pipeline.
        arguments: of its call. None stands for what was not given.

    Returns:
        The arguments, with Python's numbers in place of NumPy's.

    Raises:
        TypeError: for a value of another kind.
        ValueError: for a number out of range, or one that is not finite.

    Example:
        >>> from types import SimpleNamespace
        >>> check_arguments(SimpleNamespace(), {"num_inference_steps": 0})
        Traceback (most recent call last):
        ValueError: num_inference_steps should be at least 1, got 0.
    """
    kinds = _annotated_kinds(pipe)
    if "strength" in kinds:  # image-to-image and inpainting
        _check_single_image(arguments)
    return {
        name: None if value is None else _checked(name, value, kinds.get(name, frozenset()))
        for name, value in arguments.items()
    }


def _check_single_image(arguments: Mapping[str, Any]) -> None:
    """Of several images Diffusers puts one after the other, a b a b, where the particles of a prompt stand together."""
    for name in ("image", "mask_image"):
        value = arguments.get(name)
        is_batch = isinstance(value, list | tuple) or getattr(value, "ndim", 0) > _IMAGE_SIDES
        if value is not None and is_batch and len(value) > 1:
            raise ValueError(
                f"{name} should be one image for all particles of a call, got {len(value)}: call the pipeline once for "
                "each image."
            )


def _checked(name: str, value: Any, kinds: frozenset[type]) -> Any:
    """By name where that says more than the annotation does."""
    if name in _AT_LEAST:
        return whole_number(name, value, minimum=_AT_LEAST[name])
    if name in _UNIT_RANGE:
        return real_number(name, value, low=0.0, high=1.0)
    if name in ("timesteps", "sigmas"):
        return _checked_levels(name, value)
    if _TEXTS.fullmatch(name) or name == "generator":
        return value  # `check_rows` counts them as well
    return _checked_kind(name, value, kinds)


def _checked_kind(name: str, value: Any, kinds: frozenset[type]) -> Any:
    if kinds == {int}:
        return whole_number(name, value, minimum=-(2**31))
    if (kinds and kinds <= {int, float}) or isinstance(value, float):  # no pipeline means NaN, whatever else it takes
        return real_number(name, value)
    if kinds and kinds <= {bool, str, dict, Tensor, Callable}:
        _check_instance(name, value, kinds)
    return value


def _checked_levels(name: str, value: Any) -> Any:
    """Timesteps and sigmas: a list of numbers; the scheduler checks their order."""
    if not isinstance(value, list | tuple):
        if hasattr(value, "tolist"):  # an array or a tensor: Diffusers takes them as well
            return value
        raise TypeError(f"{name} should be a list of numbers, got {type(value).__name__}.")
    if not value:
        raise ValueError(f"{name} should be a list of at least one number, got an empty one.")
    return [real_number(f"{name}[{i}]", number) for i, number in enumerate(value)]


def _check_instance(name: str, value: Any, kinds: frozenset[type]) -> None:
    tests = {bool: isinstance(value, bool), str: isinstance(value, str), dict: isinstance(value, Mapping)}
    tests |= {Tensor: isinstance(value, Tensor), Callable: callable(value) or hasattr(value, "tensor_inputs")}  # type: ignore[dict-item]
    if not any(tests[kind] for kind in kinds):
        words = {bool: "True or False", Tensor: "a tensor", Callable: "a function", dict: "a dictionary", str: "a text"}
        wanted = " or ".join(sorted(words[kind] for kind in kinds))  # type: ignore[index]
        raise TypeError(f"{name} should be {wanted}, got {type(value).__name__}.")


def _annotated_kinds(pipe: Any) -> dict[str, frozenset[type]]:
    """The kinds of each argument, without None; nothing where an annotation cannot be read."""
    try:
        hints = typing.get_type_hints(type(pipe).__call__)
    except (NameError, TypeError, AttributeError):
        return {}
    return {name: frozenset(_kinds(hint)) for name, hint in hints.items()}


def _kinds(hint: Any) -> set[Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(hint) for kind in _kinds(part)}
    if hint is types.NoneType:
        return set()
    if isinstance(hint, type) and issubclass(hint, Tensor):
        return {Tensor}  # FloatTensor, of which no tensor is an instance
    if getattr(hint, "__module__", None) == "diffusers.callbacks":
        return {Callable}
    return {hint if origin is None else origin}


def check_output_type(output_type: Any) -> None:
    """Raise for an output type that there is none of.

    Example:
        >>> check_output_type("PIL")
        Traceback (most recent call last):
        ValueError: output_type should be one of ['pil', 'np', 'pt', 'latent'], got 'PIL'. Did you mean 'pil'?
    """
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        hint = did_you_mean(str(output_type).lower(), OUTPUT_TYPES, limit=1)
        raise ValueError(f"output_type should be one of {list(OUTPUT_TYPES)}, got {output_type!r}.{hint}")


def check_texts(name: str, texts: Any, num_prompts: int | None = None) -> list[str]:
    """The texts of a prompt or of a list of them.

    Args:
        name: of the argument.
        texts: a text or a list of texts.
        num_prompts: G, how many there should be; one text then stands for all. None for any number of at least 1.

    Raises:
        TypeError: for anything else.
        ValueError: for another number of them.

    Example:
        >>> check_texts("negative_prompt", ["a"], 2)
        Traceback (most recent call last):
        ValueError: negative_prompt should be one text, or 2 texts, one for each prompt; got 1.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        got = type(texts).__name__
        if isinstance(texts, list | tuple):
            i, text = next((i, text) for i, text in enumerate(texts) if not isinstance(text, str))
            got = f"{text!r} at place {i}"
        raise TypeError(f"{name} should be a string or a list of strings, got {got}.")
    if not texts:
        raise ValueError(f"{name} is an empty list: pass at least one text.")
    if num_prompts is not None and len(texts) != num_prompts:
        raise ValueError(f"{name} should be one text, or {num_prompts} texts, one for each prompt; got {len(texts)}.")
    return list(texts)


def check_rows(arguments: dict[str, Any], *, num_prompts: int, num_particles: int) -> dict[str, Any]:
    """Check the arguments that have a row for each prompt or for each particle.

    Args:
        arguments: of the wrapped pipeline's call.
        num_prompts: G.
        num_particles: K.

    Returns:
        The arguments, with lists in place of tuples: Diffusers looks for lists.

    Raises:
        TypeError: for a value of another kind.
        ValueError: for another number of rows, or latents that are not finite.

    Example:
        >>> check_rows({"generator": 0}, num_prompts=1, num_particles=4)
        Traceback (most recent call last):
        TypeError: generator should be a torch.Generator, got 0: write torch.Generator().manual_seed(0).
    """
    checked = dict(arguments)
    for name, value in arguments.items():
        if value is None:
            continue
        if name == "generator":
            checked[name] = _checked_generator(value, num_prompts, num_particles)
        elif name == "latents":
            _check_latents(value, num_prompts, num_particles)
        elif _EMBEDS.fullmatch(name):
            _check_embeds(name, value, num_prompts)
        elif _TEXTS.fullmatch(name):
            checked[name] = _alike(check_texts(name, value, num_prompts), arguments.get("prompt"), num_prompts)
    return checked


def _alike(texts: list[str], prompt: Any, num_prompts: int) -> str | list[str]:
    """Texts in the form of the prompt, one text or a list: some pipelines want them alike, others a list of as many."""
    if isinstance(prompt, str):
        return texts[0]
    return texts * num_prompts if len(texts) < num_prompts else texts


def _checked_generator(value: Any, num_prompts: int, num_particles: int) -> Generator | list[Generator]:
    if isinstance(value, Generator):
        return value
    if not isinstance(value, list | tuple):
        seed = f": write torch.Generator().manual_seed({value})" if isinstance(value, int) else ""
        raise TypeError(f"generator should be a torch.Generator, got {value!r}{seed}.")
    wrong = next((one for one in value if not isinstance(one, Generator)), None)
    if wrong is not None:
        raise TypeError(f"generator should be a list of torch.Generator, and holds {wrong!r}.")
    if len(value) != num_prompts * num_particles:
        raise ValueError(
            f"generator should be one torch.Generator, or a list of one for each of the {num_prompts} x "
            f"{num_particles} = {num_prompts * num_particles} particles, prompt by prompt; got a list of {len(value)}."
        )
    return list(value)


def _check_latents(latents: Any, num_prompts: int, num_particles: int) -> None:
    total = num_prompts * num_particles
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        got = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
        raise TypeError(f"latents should be a floating tensor, got {got}.")
    if latents.ndim == 0 or len(latents) != total:
        rows = str(len(latents)) if latents.ndim else "a single number"
        is_by_prompt = rows == str(num_prompts)
        hint = " latents.repeat_interleave(K, 0) starts all particles of a prompt alike." if is_by_prompt else ""
        raise ValueError(
            f"latents should have {total} rows, one for each of {num_prompts} prompts x {num_particles} particles, "
            f"prompt by prompt; got {rows}.{hint}"
        )
    if not torch.isfinite(latents).all():
        raise ValueError("latents should be finite; they hold NaN or infinite values.")


def _check_embeds(name: str, embeds: Any, num_prompts: int) -> None:
    rows = len(embeds) if isinstance(embeds, Sequence) or (isinstance(embeds, Tensor) and embeds.ndim) else None
    if rows is None:
        raise TypeError(f"{name} should be a tensor with a row for each prompt, got {type(embeds).__name__}.")
    if rows != num_prompts:
        raise ValueError(f"{name} should have {num_prompts} rows, one for each prompt (not each particle); got {rows}.")
