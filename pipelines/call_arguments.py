"""The arguments of a steered call: sorted into settings and arguments of the wrapped pipeline, and checked."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from diffusers.image_processor import VaeImageProcessorLDM3D
from torch import Generator, Tensor

from fk_reward.pipelines.batch_sizes import BatchSizes, batch_size_fields
from fk_reward.pipelines.wrapped_pipeline import has_latents
from fk_reward.sampling.stochasticity import require_stochastic, takes_argument
from fk_reward.search.base import SearchConfig, needs_noise, num_finished
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.search.registry import SEARCHES, SearchLoadError, load_search, search_class, search_fields
from fk_reward.text import did_you_mean, require_text
from fk_reward.value_checks import real_number, whole_number

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SteeredCall:
    """A steered call whose arguments have been sorted and checked.

    Attributes:
        prompts: G texts that the reward reads.
        config: settings of the search.
        batch_sizes: how much runs at once.
        arguments: of the wrapped pipeline's call.
        step_defaults: arguments for `scheduler.step` that the wrapped pipeline does not pass.
        num_images_per_prompt: n, how many particles of a prompt are returned.
        output_type: one of `OUTPUT_TYPES`.
        lookahead: what the reward is asked about on the way.
    """

    prompts: list[str]
    config: SearchConfig
    batch_sizes: BatchSizes
    arguments: dict[str, Any]
    step_defaults: dict[str, Any]
    num_images_per_prompt: int
    output_type: str
    lookahead: int | str = 1


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise for a value of another class; a dictionary of fields gets the way to write it.

    Raises:
        TypeError: expected, got, and what to write.

    Example:
        >>> check_kind("batch_sizes", {"decode_batch_size": 4}, BatchSizes)
        Traceback (most recent call last):
        TypeError: batch_sizes should be of class BatchSizes, got dict: write BatchSizes(**{...}), ...
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        hint = f": write {kind.__name__}(**{{...}}), or its fields as keywords" if isinstance(value, Mapping) else ""
        raise TypeError(f"{name} should be of class {kind.__name__}, got {got}{hint}.")


def split_arguments(
    pipe: Any,
    arguments: Mapping[str, Any],
    *,
    search: SearchConfig,
    batch_sizes: BatchSizes,
    attributes: Sequence[str] = (),
) -> tuple[SearchConfig, BatchSizes, dict[str, Any]]:
    """Settings with the fields given as keywords replaced, and the arguments of the wrapped pipeline.

    Args:
        pipe: the wrapped pipeline.
        arguments: of the steered call.
        search: settings that the keywords change.
        batch_sizes: settings that the keywords change.
        attributes: names of what is written as an attribute, and not passed to a call.

    Raises:
        TypeError: for a name that is neither; the message suggests close ones.
    """
    settings = search_fields(search)
    fields = {name: value for name, value in arguments.items() if name in settings}
    sizes = {name: value for name, value in arguments.items() if name in batch_size_fields()}
    rest = {name: value for name, value in arguments.items() if name not in fields and name not in sizes}
    parameters = inspect.signature(pipe.__call__).parameters
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    for name in rest:
        if name not in known:
            hint = did_you_mean(name, [*known, *settings, *batch_size_fields()], show=str)
            if name in attributes:
                hint = f" It belongs to the pipeline: pipe.{name} = ... sets it for all calls."
            elif others := _searches_with(name):
                hint = f" It is a setting of {' and of '.join(f'search={other!r}' for other in others)}."
            raise TypeError(
                f"{name!r} is an argument neither of {type(pipe).__name__} nor of {type(search).__name__} or "
                f"BatchSizes.{hint}"
            )
    if "num_images_per_prompt" not in known:
        raise TypeError(f"{type(pipe).__name__} takes no num_images_per_prompt, so its particles cannot be batched.")
    return load_search(search, **fields), replace(batch_sizes, **sizes), rest


def _searches_with(name: str) -> list[str]:
    """Names of the searches that have a setting of this name; of the presets of one, its own name alone."""
    found: dict[type[Any], str] = {}
    for search in SEARCHES:
        with contextlib.suppress(SearchLoadError):  # of another package, which raises when it is asked for
            kind = search_class(search)
            if name in search_fields(kind) and (kind not in found or SEARCHES[search] is kind):
                found[kind] = search
    return list(found.values())


def chosen_search(
    search: str | SearchConfig | None, steering: FKSteeringConfig | None, default: SearchConfig
) -> SearchConfig:
    """The search of a call or of a pipeline.

    Args:
        search: a name of `SEARCHES`, or a config.
        steering: the older word for an `FKSteeringConfig`.
        default: where neither is given.

    Raises:
        TypeError: for both at once, and for what is no search.
        ValueError: for an unknown name; the message lists the known ones.

    Example:
        >>> chosen_search("fk", None, FKSteeringConfig()).num_particles
        4
    """
    if search is not None and steering is not None:
        raise TypeError(
            "Pass search or steering, not both: steering is the older word for search=FKSteeringConfig(...)."
        )
    if steering is not None:
        check_kind("steering", steering, FKSteeringConfig)
        return steering
    return default if search is None else load_search(search)


def takes_prompt(pipe: Any) -> bool:
    """Whether a pipeline's call has a prompt: those of a second stage get embeddings, others name their texts."""
    return "prompt" in inspect.signature(pipe.__call__).parameters


def resolve_prompts(
    pipe: Any, prompt: Any, arguments: Mapping[str, Any], reward_prompts: str | Sequence[str] | None
) -> list[str]:
    """The texts that the reward reads, one for each prompt of the batch.

    Raises:
        ValueError: when there is no text, when the counts differ, or a prompt holds half of a character.
        TypeError: for a prompt that is no string, or that the pipeline does not take.
    """
    embeds: Any = arguments.get("prompt_embeds")
    if not takes_prompt(pipe):
        if prompt is not None or reward_prompts is None:
            raise TypeError(
                f"{type(pipe).__name__} takes no prompt: pass its own arguments by their names, and reward_prompts: "
                "the texts that the reward reads, one for each image that it would make."
            )
        embeds = [reward_prompts] if isinstance(reward_prompts, str) else reward_prompts
    elif prompt is None and embeds is None:
        raise ValueError("Pass a prompt (a string or a list of strings), or prompt_embeds with reward_prompts.")
    texts = prompt if reward_prompts is None else reward_prompts
    if texts is None:
        raise ValueError("With prompt_embeds pass reward_prompts: the texts that the reward reads.")
    expected = len(embeds) if prompt is None else len(check_texts("prompt", prompt))
    texts = check_texts("prompt" if reward_prompts is None else "reward_prompts", texts)
    if len(texts) != expected:
        raise ValueError(f"The reward should get {expected} texts, one for each prompt, got {len(texts)}.")
    _require_text({"prompt": prompt, "reward_prompts": reward_prompts, **arguments})
    return texts


def _require_text(arguments: Mapping[str, Any]) -> None:
    """Refuse half characters in every prompt of the call; the tokenizer of the pipeline would end in a TypeError."""
    for name, value in arguments.items():
        if "prompt" in name:
            texts = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
            require_text([text for text in texts if isinstance(text, str)], name)


def check_output(pipe: Any, output_type: str, num_images_per_prompt: int, config: SearchConfig) -> None:
    """Raise for an output type that the pipeline does not have, or for more images than particles."""
    check_output_type(output_type)
    if output_type == "latent" and not has_latents(pipe):
        raise ValueError(f"{type(pipe).__name__} draws pixels and has no latents: ask for output_type='pt'.")
    # Diffusers makes no tensors of depths, and its 16-bit PIL images need a Pillow of before 12
    if output_type in ("pt", "pil") and isinstance(getattr(pipe, "image_processor", None), VaeImageProcessorLDM3D):
        raise ValueError(f"{type(pipe).__name__} cannot return its depths as {output_type!r}. Ask for 'np'.")
    finished = num_finished(config)
    whole_number("num_images_per_prompt", num_images_per_prompt, minimum=1)
    if num_images_per_prompt > finished:
        name = "num_particles" if finished == config.num_particles else "final_particles"
        limit, remedy = f"[1, {name} = {finished}]", f"raise {name} for more"
        if name not in search_fields(config):  # of another search, whose settings are not known here
            limit, remedy = f"[1, {finished}]", f"{type(config).__name__} finishes {finished} particles of a prompt"
        raise ValueError(f"num_images_per_prompt should be in {limit}, got {num_images_per_prompt}; {remedy}.")


def complete_eta(pipe: Any, config: SearchConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Set the search's own eta where the scheduler takes one and the caller gave none; refuse what does not go early.

    Returns:
        Defaults for `scheduler.step`, for pipelines that do not hand `eta` on.

    Raises:
        ValueError: for a deterministic scheduler, an explicit `eta=0.0` among them, where the search needs noise.
    """
    scheduler, stochastic = pipe.scheduler, needs_noise(config)
    if not takes_argument(scheduler, "eta"):
        if stochastic:
            require_stochastic(scheduler)
        if arguments.get("eta") is not None:
            logger.warning("eta=%s has no effect: %s takes none.", arguments["eta"], type(scheduler).__name__)
        return {}
    eta = arguments.get("eta")
    eta = config.default_eta if eta is None else eta
    if eta is None:
        arguments.pop("eta", None)
        return {}
    if stochastic:
        require_stochastic(scheduler, eta=eta)
    if "eta" in inspect.signature(pipe.__call__).parameters:
        arguments["eta"] = eta
        return {}
    arguments.pop("eta", None)
    return {"eta": eta}


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
        The arguments, with Python's numbers instead of NumPy's.

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
    """Raise for an unknown output type.

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
        The arguments, with lists instead of tuples: Diffusers looks for lists.

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
