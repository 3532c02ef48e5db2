"""The search of a call: what it leaves to the call, and what a budget of sample steps pays for."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fk_reward.sampling.trace import SteeringTrace
from fk_reward.search.base import ChosenByCall, SearchConfig, forecast
from fk_reward.search.budget import check_typed_sizes, fit_budget
from fk_reward.search.registry import load_search, search_fields
from fk_reward.value_checks import whole_number

logger = logging.getLogger(__name__)


def num_inference_steps(pipe: Any, arguments: Mapping[str, Any]) -> int:
    """`num_inference_steps` of a call, given or by default.

    Args:
        pipe: the wrapped pipeline.
        arguments: of its call.
    """
    for name in ("timesteps", "sigmas"):
        if arguments.get(name) is not None:
            return len(arguments[name])
    given = arguments.get("num_inference_steps")
    default = inspect.signature(pipe.__call__).parameters["num_inference_steps"].default
    return int(default if given is None else given)


def scheduler_steps(pipe: Any, number: int, arguments: Mapping[str, Any]) -> int:
    """Steps that the scheduler makes in a call with so many inference steps, at most.

    Schedulers of second order make nearly two of each; image-to-image pipelines leave out the first ones by `strength`.

    Args:
        pipe: the wrapped pipeline.
        number: `num_inference_steps`.
        arguments: of its call.
    """
    order = getattr(pipe.scheduler, "order", 1)
    try:
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(number)
        length = len(scheduler.timesteps)
    except (TypeError, ValueError, RuntimeError):  # some want more, such as `mu` of flow matching, for the same number
        length = number * order
    strength = arguments.get("strength")
    parameter = inspect.signature(pipe.__call__).parameters.get("strength")
    if strength is None and parameter is not None:
        strength = parameter.default
    if not isinstance(strength, int | float):
        return length
    left_out = int(number - min(number * strength, number))  # as Diffusers' pipelines round, or fewer
    return max(length - left_out * order, 1)


def search_within_budget(
    pipe: Any, config: SearchConfig, budget: int | None, arguments: Mapping[str, Any], *, lookahead: int | str = 1
) -> SearchConfig:
    """The search that a budget pays for in a call; as it is without one.

    Args:
        pipe: the wrapped pipeline.
        config: of the search.
        budget: sample steps of a prompt.
        arguments: of the wrapped pipeline's call.
        lookahead: of the predictions that are scored on the way, which costs steps as well.

    Raises:
        ValueError: for a budget that buys nothing, or a pipeline whose number of steps is not known.
    """
    if budget is None:
        return config
    if "num_inference_steps" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(
            f"budget is a number of sample steps, and how many a call of {type(pipe).__name__} makes is not known: set "
            f"the sizes of {type(config).__name__} instead."
        )
    number = num_inference_steps(pipe, arguments)
    return fit_budget(
        config, budget, number, length=lambda steps: scheduler_steps(pipe, steps, arguments), lookahead=lookahead
    )


@dataclass(frozen=True)
class SearchChoice:
    """The search of a call, and what led to it.

    Attributes:
        asked: the search that was asked for.
        config: of the search that runs: another one where that is a `ChosenByCall`.
        explanation: what was chosen and why, and how to choose another; None where nothing was.
    """

    asked: SearchConfig
    config: SearchConfig
    explanation: str | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        """A context in which errors of settings say what was chosen: who asked has not named that search.

        Raises:
            TypeError: one of the context, with the explanation.
            ValueError: the same.
        """
        try:
            yield
        except (TypeError, ValueError) as error:
            if self.explanation is None:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{error} {self.explanation}") from error

    def with_settings(self, settings: Mapping[str, Any]) -> SearchConfig:
        """The config with some of its fields replaced.

        Raises:
            TypeError: for a field that the search lacks.
            ValueError: for a value that it refuses.
        """
        with self.told():
            return load_search(self.config, **settings)


def choose_search(
    asked: SearchConfig,
    arguments: dict[str, Any],
    num_images: int,
    scheduler: Any = None,
    *,
    budget: int | None = None,
) -> SearchChoice:
    """The search of this call: what was asked for, or what that chooses for the call (`ChosenByCall`).

    Args:
        asked: the search that was asked for.
        arguments: of the call; the fields of a search that chooses are taken out.
        num_images: of a prompt that are returned.
        scheduler: that makes the steps, if known.
        budget: of the call, in sample steps of a prompt.

    Raises:
        TypeError: for a number of images that is none.
        ValueError: where two arguments set the same size, or one is out of range.

    Example:
        >>> arguments = {"situation": "constraint", "num_inference_steps": 4}
        >>> choice = choose_search(load_search("recommended"), arguments, num_images=1)
        >>> type(choice.config).__name__, arguments
        ('FKSteeringConfig', {'num_inference_steps': 4})
    """
    if budget is not None:
        check_typed_sizes(asked, arguments, budget=f"budget={budget}")
    if not isinstance(asked, ChosenByCall):
        return SearchChoice(asked, asked)
    number = whole_number("num_images_per_prompt", num_images, minimum=1)
    own = {name: arguments.pop(name) for name in search_fields(asked) if name in arguments}
    choosing: Any = load_search(asked, **own)
    config = choosing.for_call(number, scheduler)
    explain = getattr(choosing, "explain", None)
    default = f"{type(asked).__name__} chose {type(config).__name__} for this call."
    choice = SearchChoice(asked, config, explain(number, scheduler) if callable(explain) else default)
    with choice.told():
        if budget is not None:
            check_typed_sizes(config, arguments, budget=f"budget={budget}")
        _refuse_two_sizes(config, own.get("num_particles"), arguments)
    return choice


def _refuse_two_sizes(config: SearchConfig, num_particles: int | None, arguments: Mapping[str, Any]) -> None:
    """Of a tree `num_particles` sets the branches; neither of two numbers should be passed over in silence."""
    for name in getattr(config, "set_by_budget", ()):
        if num_particles is not None and name in arguments:
            raise ValueError(
                f"num_particles={num_particles} says how many candidates there are, and {name}={arguments[name]} of "
                f"{type(config).__name__} says it, too: leave one of them out."
            )


def with_choice(trace: SteeringTrace, asked: SearchConfig, config: SearchConfig) -> SteeringTrace:
    """The trace of a call, with a note of what was chosen where the search left that to the call.

    Args:
        trace: of the call.
        asked: the search that was asked for.
        config: the search that ran.
    """
    if not isinstance(asked, ChosenByCall):
        return trace
    return replace(trace, notes=(f"{type(asked).__name__} chose {config}.", *trace.notes))


def with_budget(trace: SteeringTrace, budget: int | None, config: SearchConfig) -> SteeringTrace:
    """The trace of a call with its budget, and what its user should know of that.

    Args:
        trace: of the call.
        budget: sample steps of a prompt; None without one.
        config: the search that ran.
    """
    if budget is None:
        return trace
    notes, spent = [], trace.sample_steps or 0
    expected = forecast(config, trace.num_steps)
    if expected.num_scored - sum(expected.guided) == 1:  # a single guided image is scored often, and chosen from none
        notes.append(f"budget={budget} sample steps a prompt bought one image, of which nothing could be chosen.")
    if spent > budget * len(trace.prompts):
        notes.append(f"The call took {spent} sample steps, and budget={budget} a prompt: more steps ran than expected.")
    for note in notes:
        logger.warning(note)
    return replace(trace, budget=budget, notes=(*trace.notes, *notes))
