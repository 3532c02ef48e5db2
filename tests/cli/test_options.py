"""Options made from dataclasses."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Annotated, get_args

import pytest
from cyclopts import App, CycloptsError, Parameter

from fk_reward import BatchSizes, FKSteeringConfig
from fk_reward.cli.app import COMMANDS, RAW, build_app
from fk_reward.cli.options import (
    SEARCH,
    FieldOptions,
    Placement,
    Sampling,
    SearchFieldOptions,
    TypedFields,
    field_parameters,
    field_texts,
    named_search,
    other_searches,
    with_options,
)
from fk_reward.search import SEARCHES, search_fields


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size.

    Attributes:
        width: Columns. More is slower.
        cuts: `places` to cut at, in
            order.
    """

    width: int | str = 4
    cuts: tuple[float, ...] = (0.5,)
    deep: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.width, str) and self.width != "auto":
            raise TypeError(f'width should be an int or "auto", got {self.width!r}.')


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Groups in groups.

    Attributes:
        size: of it.
        name: What it is called.
    """

    size: Annotated[Size, FieldOptions(Size)]
    name: Annotated[str, Parameter(alias="-n")]


def draw(words, /, *, drawing, sizes, seed=0):
    return words, drawing, sizes, seed


draw.__annotations__ = {
    "words": list[str],
    "drawing": Annotated[Drawing, FieldOptions(Drawing, SEARCH)],
    "sizes": Annotated[dict, TypedFields(BatchSizes, SEARCH, skip=("decode_batch_size",))],
    "seed": int,
}


def called(*tokens):
    app = App(default_parameter=Parameter(negative=(), allow_repeating=True), result_action="return_value")
    app.default(with_options(draw))
    return app(tokens, exit_on_error=False, print_error=False)


def test_options_become_dataclasses_of_what_was_typed():
    assert called("a", "b", "--name", "x") == (["a", "b"], Drawing(size=Size(), name="x"), {}, 0)
    words, drawing, sizes, seed = called(
        "a", "--cuts", "0.2", "0.4", "--width", "auto", "-n", "y", "--deep", "--seed", "3", "--reward-batch-size", "2"
    )
    assert (words, seed) == (["a"], 3)
    assert drawing == Drawing(size=Size(width="auto", cuts=(0.2, 0.4), deep=True), name="y")
    assert sizes == {"reward_batch_size": 2}


def test_the_last_of_several_values_holds():
    assert called("a", "--name", "x", "--name", "y", "--width", "3", "--width", "5")[1] == Drawing(
        size=Size(width=5), name="y"
    )


@pytest.mark.parametrize(
    "tokens", [("a",), ("a", "-n", "x", "--decode-batch-size", "3"), ("a", "-n", "x", "--no-deep")]
)
def test_what_is_no_option_or_missing_is_refused(tokens):
    with pytest.raises(CycloptsError):
        called("a", *tokens)


def test_a_dataclass_that_refuses_a_type_is_a_mistake_of_the_user():
    with pytest.raises(ValueError, match="width should be an int"):
        called("a", "-n", "x", "--width", "wide")


def test_the_help_is_the_first_sentence_of_the_documentation():
    assert field_texts(Size) == {"width": "Columns.", "cuts": "Places to cut at, in order."}


@pytest.mark.parametrize("kind", [FKSteeringConfig, BatchSizes, Sampling, Placement])
def test_names_defaults_and_help_are_those_of_the_fields(kind):
    parameters = {parameter.name: parameter for parameter in field_parameters(kind)}
    assert list(parameters) == [field.name for field in fields(kind)]
    for field in fields(kind):
        assert parameters[field.name].default == field.default
        options = get_args(parameters[field.name].annotation)[1:]  # a field may have checks of its own
        assert any(option.help for option in options), f"{kind.__name__}.{field.name} is not documented"


@pytest.mark.parametrize("name", list(SEARCHES))
def test_every_search_is_documented(name):
    texts = field_texts(SEARCHES[name] if isinstance(SEARCHES[name], type) else type(SEARCHES[name]))
    assert set(search_fields(name)) <= set(texts)


def test_a_preset_shows_its_own_defaults():
    preset = FKSteeringConfig(num_particles=9, potential="max")
    shown = {parameter.name: parameter.default for parameter in field_parameters(FKSteeringConfig, defaults=preset)}
    assert (shown["num_particles"], shown["potential"]) == (9, "max")


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ((), "fk"),
        (("generate", "--search", "beam", "a"), "beam"),
        (("generate", "--search=beam"), "beam"),
        (("generate", "--search"), "fk"),
        (("generate", "--", "--search", "beam"), "fk"),
    ],
)
def test_the_search_of_a_command_line(tokens, name):
    assert named_search(tokens) == name


def test_searches_that_have_an_option():
    assert "fk" in other_searches("--ess-threshold")
    assert other_searches("--no-such-setting") == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in RAW])
def test_every_option_of_every_command_has_help(name):
    (command,) = (with_options(COMMANDS[name], (name,)),)
    app = build_app(name.split())
    for word in name.split():
        app = app[word]
    for argument in app.assemble_argument_collection(parse_docstring=True):
        assert argument.parameter.help, f"{name} {argument.name}"
    assert len(inspect.signature(command).parameters) >= len(inspect.signature(COMMANDS[name]).parameters)


@pytest.mark.parametrize(("typed", "expected"), [("rising", "rising"), ("0.1,0.3,0.7,1", (0.1, 0.3, 0.7, 1.0))])
def test_weights_of_the_steps_are_one_word_and_leave_the_prompt_alone(typed, expected):
    def drawn(prompt, /, *, search):
        return prompt, search.reward_weight

    drawn.__annotations__ = {"prompt": str, "search": Annotated[object, SearchFieldOptions()]}
    app = App(result_action="return_value")
    app.default(with_options(drawn))
    assert app(["--reward-weight", typed, "a star"], exit_on_error=False) == ("a star", expected)
