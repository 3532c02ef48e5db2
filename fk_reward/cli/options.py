"""Options made from dataclasses: a field is an option, its documentation the help, its default what is shown.

A command writes its dataclasses into its signature, and `with_options` replaces each of them by one keyword for each
field, from which cyclopts makes the options:

    def generate(prompts: list[str], /, *, search: SearchOptions, batch_sizes: BatchSizeOptions = BATCH_SIZES) -> None:

The name of an option is that of the field with dashes, everywhere. Which fields a search has depends on `--search`, so
the signature is made when the command line is known; and a class is imported only for the command that was typed, so
that `fk-reward --help` waits neither for PyTorch nor for Diffusers.

Tried for this, on `FKSteeringConfig`: transformers' `HfArgumentParser` (no unions, no help from docstrings),
`jsonargparse` (underscores, tuples as JSON), `tyro` (a union of all searches only, errors in a form of its own) and
`cyclopts`, which reads Google docstrings, has panels, suggestions and shell completion, and leaves errors to us.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Optional,
    Protocol,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import docstring_parser
from cyclopts import Group, Parameter

from fk_reward.cli import early_checks

ALIASES = {
    "num_particles": ("-k",),
    "num_inference_steps": ("--steps",),
    "num_steps": ("--steps", "--num-inference-steps"),
    "stages": ("--stage",),
    "heldout": ("--heldout-reward",),
    "num_images_per_prompt": ("--images-per-prompt",),
    "model": ("-m",),
    "reward": ("-r",),
}
"""Field -> other names of its option."""

NEGATIVES = {"diversity": "--no-diversity"}
"""Field -> how it is switched off, where something else than its own default may have switched it on."""

SEARCH = Group("Search", sort_key=1)
MODEL = Group("Model", sort_key=2)
REWARD = Group("Reward", sort_key=3)
MEMORY = Group("Memory and speed", sort_key=4)
OUTPUT = Group("Output", sort_key=5)
"""Panels of `--help`."""

DEFAULT_SEARCH = "fk"


Build = Callable[[Mapping[str, Any]], Any]
"""From the options that were typed, by name, to what they stand for."""


@runtime_checkable
class OptionGroup(Protocol):
    """What stands for several options in the signature of a command, or in a dataclass of options."""

    def expand(self, tokens: Sequence[str]) -> tuple[list[inspect.Parameter], Build]:
        """One keyword for each option, and what becomes of those that were typed.

        Args:
            tokens: the command line.
        """


@dataclass(frozen=True)
class FieldOptions:
    """The options that set the fields of a dataclass.

    Args:
        target: the class, or "module:class" of one that is imported when the command is run.
        panel: of the help, for fields that name no other.
    """

    target: type[Any] | str
    panel: Group | None = None

    def expand(self, tokens: Sequence[str]) -> tuple[list[inspect.Parameter], Build]:
        """One keyword for each field; fields that are groups of options are expanded, too."""
        kind = _imported(self.target)
        parameters, gather = _expand(field_parameters(kind, panel=self.panel), tokens)
        return parameters, lambda typed: kind(**gather(typed))


@dataclass(frozen=True)
class TypedFields:
    """The options that set some fields of dataclasses, as a dictionary of those that were typed.

    For commands whose presets fill in what was not typed; so no field must be typed.

    Args:
        target: a dataclass, or "module:class" of one that is imported when the command is run.
        panel: of the help.
        names: of the fields; all but `skip` if not given.
        skip: fields that the command sets in another way.
    """

    target: type[Any] | str
    panel: Group | None = None
    names: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()

    def expand(self, tokens: Sequence[str]) -> tuple[list[inspect.Parameter], Build]:  # noqa: ARG002 (of all groups)
        """One keyword for each field."""
        kind = _imported(self.target)
        names = [field.name for field in fields(kind) if field.name not in self.skip]
        parameters = field_parameters(kind, panel=self.panel, names=self.names or names)
        return [optional(item) if item.default is inspect.Parameter.empty else item for item in parameters], dict


@dataclass(frozen=True)
class SearchFieldOptions:
    """`--search NAME`, and the settings of the search that it names."""

    def expand(self, tokens: Sequence[str]) -> tuple[list[inspect.Parameter], Build]:
        """The name, and one keyword for each field of the search that the command line names.

        Raises:
            ValueError: there is no such search; the message lists the known ones.
            SearchLoadError: it is registered and cannot be imported.
        """
        from fk_reward.search import SEARCHES
        from fk_reward.search.budget import check_typed_sizes
        from fk_reward.search.registry import search_config

        name = named_search(tokens, ("--search", "--preset"))
        text = f"Who goes on: {', '.join(SEARCHES)}. Of its settings those of {name} are shown here."
        hint = Annotated[str, Parameter(help=text, alias="--preset", group=SEARCH)]
        named = inspect.Parameter("search", inspect.Parameter.KEYWORD_ONLY, default=DEFAULT_SEARCH, annotation=hint)
        parameters = search_parameters(name)

        def build(typed: Mapping[str, Any]) -> Any:
            made = search_config(name, **{field: value for field, value in typed.items() if field != "search"})
            if any(token.partition("=")[0] == "--budget" for token in tokens):
                check_typed_sizes(made, typed, budget="--budget")
            return made

        return [named, *parameters], build


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a trajectory is run.

    Attributes:
        solver: Scheduler, steps and guidance of a published recipe: ddim-100, sde-dpmsolver++-20, lcm-4, ...
        num_inference_steps: Scheduler steps; the solver's, or 50, if not given.
        guidance_scale: Classifier-free guidance; the solver's, 3 for shapes-sd, or the pipeline's own, if not given.
        preview: Decoder of the scoring steps: auto, taesd, taesdxl, vae/2, a hub id or a folder; the model's own if not
            given.
    """

    solver: Annotated[str | None, Parameter(validator=early_checks.SOLVER)] = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    preview: str | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"--num-inference-steps should be at least 1, got {self.num_inference_steps}.")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the models run, and in which floating type.

    Attributes:
        device: Device of the models: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
        dtype: Floating type of the model: auto (float16 on a GPU), float32, float16 or bfloat16.
    """

    device: Annotated[str, Parameter(validator=early_checks.DEVICE)] = "auto"
    dtype: Annotated[str, Parameter(validator=early_checks.DTYPE)] = "auto"


def named_path(_type: Any, tokens: Sequence[Any]) -> Path:
    """The path that was typed, for cyclopts.

    Raises:
        ValueError: it is empty, as of an unset variable of a shell, and would be the current folder.
    """
    if not tokens[0].value.strip():
        raise ValueError("the name is empty; write . for the current folder.")
    return Path(tokens[0].value)


NamedPath = Annotated[Path, Parameter(converter=named_path)]
"""A path to write to."""
OutOption = Annotated[Path, Parameter(name=("--out", "-o"), converter=named_path, group=OUTPUT)]
OverwriteOption = Annotated[bool, Parameter(group=OUTPUT)]
ModelOption = Annotated[str, Parameter(alias="-m", group=MODEL, validator=early_checks.MODEL)]
# A composition may begin with a minus: --reward "-a + b".
RewardOption = Annotated[
    str, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True, validator=early_checks.REWARD)
]
DeviceOption = Annotated[str, Parameter(group=MODEL, validator=early_checks.DEVICE)]
ShardOption = Annotated[str | None, Parameter(group=MEMORY)]
RayWorkersOption = Annotated[int | None, Parameter(group=MEMORY)]

if TYPE_CHECKING:
    from fk_reward.pipelines.batch_sizes import BatchSizes
    from fk_reward.search import SearchConfig

    SearchOptions = SearchConfig
    BatchSizeOptions = BatchSizes
    SamplingOptions = Sampling
    PlacementOptions = Placement
else:
    SearchOptions = Annotated[Any, SearchFieldOptions()]
    BatchSizeOptions = Annotated[Any, FieldOptions("fk_reward.pipelines.batch_sizes:BatchSizes", MEMORY)]
    SamplingOptions = Annotated[Any, FieldOptions(Sampling, MODEL)]
    PlacementOptions = Annotated[Any, FieldOptions(Placement, MODEL)]


def with_options(command: Callable[..., Any], tokens: Sequence[str] = ()) -> Callable[..., Any]:
    """A command with a keyword for each option in place of its groups of options.

    Args:
        command: a function.
        tokens: the command line, which says whose options are wanted.

    Returns:
        A function that makes the groups of what was typed and calls the command with them.

    Example:
        >>> def draw(*, sampling: Annotated[Sampling, FieldOptions(Sampling)]) -> None:
        ...     print(sampling.num_inference_steps)
        >>> draw.__annotations__ = {"sampling": Annotated[Sampling, FieldOptions(Sampling)]}
        >>> with_options(draw)(num_inference_steps=4)
        4
    """
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    typed = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    parameters, gather = _expand(typed, tokens)

    def run(*arguments: Any, **options: Any) -> Any:
        try:
            groups = gather(options)
        except TypeError as error:  # of a dataclass that checks its fields; in a command it would be a defect
            raise ValueError(str(error)) from error
        return command(*arguments, **groups)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _expand(parameters: Iterable[inspect.Parameter], tokens: Sequence[str]) -> tuple[list[inspect.Parameter], Build]:
    """Parameters without groups, and what turns their values into those of the parameters with groups."""
    made: list[inspect.Parameter] = []
    owners: dict[str, str] = {}
    builds: dict[str, Build] = {}
    for parameter in parameters:
        group = _group(parameter.annotation)
        if group is None:
            made.append(parameter)
            continue
        options, builds[parameter.name] = group.expand(tokens)
        made += options
        owners |= {option.name: parameter.name for option in options}

    def gather(typed: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in typed.items() if name not in owners}
        for owner, build in builds.items():
            values[owner] = build({name: value for name, value in typed.items() if owners.get(name) == owner})
        return values

    return made, gather


def field_parameters(
    kind: type[Any], *, panel: Group | None = None, names: Sequence[str] | None = None, defaults: Any = None
) -> list[inspect.Parameter]:
    """A keyword for each field of a dataclass.

    Args:
        kind: the dataclass.
        panel: of the help, for fields that name no other.
        names: of the fields; all of them if not given.
        defaults: an instance whose values are shown as the defaults; those of the fields if not given.

    Example:
        >>> [parameter.name for parameter in field_parameters(Placement, panel=MODEL)]
        ['device', 'dtype']
    """
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)  # type: ignore[arg-type]
    parameters = []
    for field in fields(kind):
        if field.init and (names is None or field.name in names):
            default = _default(field) if defaults is None else getattr(defaults, field.name)
            hint: Any = Annotated[hints[field.name], Parameter(help=texts.get(field.name))]
            if _group(hint) is None:
                hint = _option(field.name, hints[field.name], default, help=texts.get(field.name), group=panel)
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, keyword, default=default, annotation=hint))
    return parameters


def _option(name: str, hint: Any, default: Any, **settings: Any) -> Any:
    """The type of a field with what its option shows; what the hint itself says goes before."""
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    parameter = Parameter(
        alias=ALIASES.get(name, ()),
        negative=NEGATIVES.get(name, ()),
        # --keep 7 4, as a tuple is thought of; lists are typed as --reward a --reward b, and leave what follows alone
        consume_multiple=any(get_origin(part) is tuple for part in (kind, *get_args(kind))),
        show_default=_shown(default),
        **settings,
    )
    return Annotated[(kind, parameter, *extras)]  # type: ignore[return-value]


def optional(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with the default None, which its type allows: cyclopts checks defaults where pydantic is loaded."""
    hint = parameter.annotation
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    allowed: Any = Optional[kind]  # type: ignore[valid-type]  # noqa: UP007, UP045 (`|` takes no special forms)
    return parameter.replace(default=None, annotation=Annotated[(allowed, *extras)] if extras else allowed)


@lru_cache
def field_texts(kind: type[Any]) -> dict[str, str]:
    """The help of each field: the first sentence of what the docstrings of a dataclass and its bases say about it.

    Example:
        >>> field_texts(Placement)["device"]
        'Device of the models: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.'
    """
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            documented = docstring_parser.parse(inspect.cleandoc(base.__doc__ or "")).params
            texts |= {param.arg_name: _first_sentence(param.description or "") for param in documented}
    return texts


def _first_sentence(text: str) -> str:
    words = re.sub(r"None for ([^;.]+)", r"\1 if not given", " ".join(text.replace("`", "").replace('"', "").split()))
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])", words, maxsplit=1)[0]
    return sentence[:1].upper() + sentence[1:]


def search_parameters(name: str) -> list[inspect.Parameter]:
    """A keyword for each setting of a search; of a preset with its own values as defaults.

    Raises:
        ValueError: there is no such search; the message lists the known ones.
        SearchLoadError: it is registered and cannot be imported.
    """
    from fk_reward.search import SEARCHES, search_class, search_fields

    kind, preset = search_class(name), SEARCHES[name]
    shown = None if isinstance(preset, type) else preset
    return field_parameters(kind, panel=SEARCH, names=list(search_fields(name)), defaults=shown)


def named_searches(tokens: Sequence[str], words: Sequence[str] = ("--search", "--method")) -> list[str]:
    """The searches that a command line names.

    Args:
        tokens: the command line.
        words: the options that name them.

    Example:
        >>> named_searches(["geneval", "--method", "unsteered", "--search=pruning"])
        ['unsteered', 'pruning']
    """
    options = list(tokens[: tokens.index("--")] if "--" in tokens else tokens)
    names = []
    for option, following in zip(options, [*options[1:], ""], strict=False):
        name, _, value = option.partition("=")
        if name in words:
            names += [value or following] if value or following else []
    return names


def named_search(tokens: Sequence[str], words: Sequence[str] = ("--search",)) -> str:
    """The search that a command line names; the last of several.

    Args:
        tokens: the command line.
        words: the options that name it.

    Example:
        >>> named_search(["generate", "a star", "--search", "pruning"]), named_search(["generate", "a star"])
        ('pruning', 'fk')
    """
    return (named_searches(tokens, words) or [DEFAULT_SEARCH])[-1]


def other_searches(option: str) -> list[str]:
    """Names of the searches that have an option, such as `"--keep"`; those that cannot be imported are passed over."""
    from fk_reward.search import SEARCHES, SearchLoadError, search_fields

    field = option.removeprefix("--").replace("-", "_")
    found = []
    for name in SEARCHES:
        try:
            found += [name] if field in search_fields(name) else []
        except SearchLoadError:  # of another package; it is reported when it is asked for by name
            continue
    return found


def _imported(target: type[Any] | str) -> type[Any]:
    if isinstance(target, type):
        return target
    module, _, name = target.partition(":")
    found: type[Any] = getattr(import_module(module), name)
    return found


def _group(hint: Any) -> OptionGroup | None:
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, OptionGroup)), None)


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return inspect.Parameter.empty if field.default_factory is MISSING else field.default_factory()


def _shown(default: Any) -> Callable[[Any], str] | None:
    """Tuples as they are typed."""
    return (lambda values: " ".join(map(str, values)) or "none") if isinstance(default, (tuple, list)) else None
