"""Sorts the arguments of a steered call into settings of the sampler and arguments of the wrapped pipeline."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers.image_processor import VaeImageProcessorLDM3D

from fk_reward.number_checks import whole_number
from fk_reward.pipelines.argument_checks import check_output_type, check_texts
from fk_reward.pipelines.batch_sizes import BatchSizes, batch_size_fields
from fk_reward.pipelines.wrapped_pipeline import has_latents
from fk_reward.sampling.stochasticity import require_stochastic, takes_argument
from fk_reward.search.feynman_kac import FKSteeringConfig, config_fields
from fk_reward.user_text import did_you_mean, require_text

logger = logging.getLogger(__name__)
_ATTRIBUTES = ("reward", "preview", "solver", "scheduler", "batch_sizes", "spread", "reward_device")


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
    pipe: Any, arguments: Mapping[str, Any], *, steering: FKSteeringConfig, batch_sizes: BatchSizes
) -> tuple[FKSteeringConfig, BatchSizes, dict[str, Any]]:
    """Settings with the fields given as keywords replaced, and the arguments of the wrapped pipeline.

    Raises:
        TypeError: for a name that is neither; the message suggests close ones.
    """
    check_kind("steering", steering, FKSteeringConfig)
    fields = {name: value for name, value in arguments.items() if name in config_fields()}
    sizes = {name: value for name, value in arguments.items() if name in batch_size_fields()}
    rest = {name: value for name, value in arguments.items() if name not in fields and name not in sizes}
    parameters = inspect.signature(pipe.__call__).parameters
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    for name in rest:
        if name not in known:
            hint = did_you_mean(name, [*known, *config_fields(), *batch_size_fields()], show=str)
            if name in _ATTRIBUTES:
                hint = f" It belongs to the pipeline: pipe.{name} = ... sets it for all calls."
            raise TypeError(
                f"{name!r} is an argument neither of {type(pipe).__name__} nor of FKSteeringConfig or BatchSizes.{hint}"
            )
    if "num_images_per_prompt" not in known:
        raise TypeError(f"{type(pipe).__name__} takes no num_images_per_prompt, so its particles cannot be batched.")
    return replace(steering, **fields), replace(batch_sizes, **sizes), rest


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


def check_output(pipe: Any, output_type: str, num_images_per_prompt: int, config: FKSteeringConfig) -> None:
    """Raise for an output type that is not to be had, or when more images are asked for than there are particles."""
    check_output_type(output_type)
    if output_type == "latent" and not has_latents(pipe):
        raise ValueError(f"{type(pipe).__name__} draws pixels and has no latents: ask for output_type='pt'.")
    # Diffusers makes no tensors of depths, and its 16-bit PIL images need a Pillow of before 12
    if output_type in ("pt", "pil") and isinstance(getattr(pipe, "image_processor", None), VaeImageProcessorLDM3D):
        raise ValueError(f"{type(pipe).__name__} cannot return its depths as {output_type!r}. Ask for 'np'.")
    name = "num_particles" if config.final_particles is None else "final_particles"
    finished = getattr(config, name)
    whole_number("num_images_per_prompt", num_images_per_prompt, minimum=1)
    if num_images_per_prompt > finished:
        raise ValueError(
            f"num_images_per_prompt should be in [1, {name} = {finished}], got {num_images_per_prompt}; "
            f"raise {name} for more."
        )


def complete_eta(pipe: Any, config: FKSteeringConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """Set `eta=1.0` where the scheduler takes it and the caller gave none; refuse deterministic settings early.

    Returns:
        Defaults for `scheduler.step`, for pipelines that do not hand `eta` on.

    Raises:
        ValueError: for a deterministic scheduler, an explicit `eta=0.0` among them. Unless nothing is resampled.
    """
    scheduler = pipe.scheduler
    if not takes_argument(scheduler, "eta"):
        if config.resamples:
            require_stochastic(scheduler)
        if arguments.get("eta") is not None:
            logger.warning("eta=%s has no effect: %s takes none.", arguments["eta"], type(scheduler).__name__)
        return {}
    eta = arguments.get("eta")
    eta = 1.0 if eta is None else eta
    if config.resamples:
        require_stochastic(scheduler, eta=eta)
    if "eta" in inspect.signature(pipe.__call__).parameters:
        arguments["eta"] = eta
        return {}
    arguments.pop("eta", None)
    return {"eta": eta}
