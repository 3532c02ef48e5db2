"""Generated expressions against Python's own arithmetic, and their canonical text and range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.rewards.composition.expression import Part, weighted_sum
from fk_reward.rewards.composition.parser import parse_expression
from tests.rewards.composition.scripted import NAMES, Channel

CARDS = {name: Channel(index).card for index, name in enumerate(NAMES)}
SCORES = st.tuples(*[st.integers(-16, 16).map(lambda quarters: quarters / 4)] * 3)
POWERS = st.sampled_from(["0.5", "2", "4", ".25", "1e0", "-2"])  # products of these are exact in float32

leaves = st.one_of(st.sampled_from(["{a}", "{b}", "{c}"]), st.sampled_from(["0.5", "2", "3.", "1"]))


def _grown(inner):
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-"), inner),
        st.builds("{} {} {}".format, inner, st.sampled_from("+-"), inner),
        st.builds("{}*({})".format, POWERS, inner),
        st.builds("({})/{}".format, inner, st.sampled_from(["2", "-4", "0.5"])),
        st.builds("-({})".format, inner),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner),
        st.builds("z({}, mean={}, spread={})".format, inner, st.sampled_from(["-1", "0.5"]), st.sampled_from("24")),
        st.builds(
            "({} if {} {} {} else {})".format, inner, inner, st.sampled_from([">", ">=", "<", "<="]), inner, inner
        ),
    )


TEXTS = st.recursive(leaves, _grown, max_leaves=10).map("{} + 0*{{a}}".format)


def parsed(text):
    return parse_expression(text.format(a=NAMES[0], b=NAMES[1], c=NAMES[2]), CARDS.__getitem__)[0]


def by_python(text, scores):
    functions = {"min": min, "max": max, "z": lambda x, *, mean, spread: (x - mean) / spread}
    return eval(text.format(a="x", b="y", c="t"), functions, dict(zip("xyt", scores, strict=True)))  # noqa: S307


def by_us(expression, scores):
    return expression.evaluate({name: torch.tensor([score]) for name, score in zip(NAMES, scores, strict=True)}).item()


@settings(max_examples=200, deadline=None)
@given(TEXTS, SCORES)
def test_the_value_is_that_of_python(text, scores):
    assert by_us(parsed(text), scores) == by_python(text, scores)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_the_canonical_text_reads_back_as_the_same_expression(text):
    expression = parsed(text)
    assert parse_expression(str(expression), CARDS.__getitem__)[0] == expression


@settings(max_examples=100, deadline=None)
@given(TEXTS, SCORES)
def test_the_range_holds_the_value(text, scores):
    expression = parsed(text)
    low, high = expression.typical_range(CARDS)
    assert low <= by_us(expression, scores) <= high


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("{b}*1.0", "hps-v2.1"),
        ("0.5*{a} + 0.5*{a}", "a"),
        ("0.5 - {a}", "-a + 0.5"),
        ("2*(({a} - 3) + {b}/4)", "2*a + 0.5*hps-v2.1 - 6"),
        ("{a} - {a} + {b}", "0*a + hps-v2.1"),
        ("{a} -{c}", "a - safe@q"),
        ("min({a}, -0.5)", "min(a, -0.5)"),
        ("z({a})", "z(a, mean=0, spread=0.5)"),
        ("z(2*{a} + 1)", "z(2*a + 1, mean=1, spread=1)"),
        ("{a} if {c} > 0", "a if safe@q > 0 else -4"),
        ("min({a} if {c} > 0, {b})", "min(a if safe@q > 0 else -4, hps-v2.1)"),
        ("{a} if {c} > 0 else {b} if {c} < -1", "a if safe@q > 0 else hps-v2.1 if safe@q < -1 else -4"),
        ("2*({a} if {b} >= {c} else 1)", "2*(a if hps-v2.1 >= safe@q else 1)"),
        ("\n {a}\n + {b}\t", "a + hps-v2.1"),
    ],
)
def test_canonical_texts(text, canonical):
    assert str(parsed(text)) == canonical


def test_swapped_weights_are_noticed():
    swapped = weighted_sum([(0.25, Part(NAMES[0])), (0.75, Part(NAMES[1]))])
    scores = (1.0, 2.0, 0.0)
    assert by_us(parsed("0.75*{a} + 0.25*{b}"), scores) == by_python("0.75*{a} + 0.25*{b}", scores) == 1.25
    assert by_us(swapped, scores) != by_python("0.75*{a} + 0.25*{b}", scores)
