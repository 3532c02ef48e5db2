"""JSON and YAML of people: what they hold, or one ValueError that names the source, in linear time."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fk_reward.documents import MAX_DEPTH, parse_json, parse_yaml

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text('[]{}"\\a,:', max_size=9),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text('[{"\\', max_size=3), children, max_size=3)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_read_as_the_standard_library_reads_it(value):
    assert parse_json(json.dumps(value), "a") == value
    assert parse_json(json.dumps([value] * 200), "a") == [value] * 200  # many brackets, few levels


@given(VALUES)
def test_yaml_is_read_as_pyyaml_reads_it(value):
    text = yaml.safe_dump(value)
    assert parse_yaml(text, "a") == yaml.safe_load(text)


def _nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_the_depth_is_bounded(parse):
    parse(_nested(MAX_DEPTH), "a")
    for text in (_nested(MAX_DEPTH + 1), _nested(20_000), "[" * 20_000, '{"a":' * 20_000):
        with pytest.raises(ValueError, match=f"rows.json: nested more than {MAX_DEPTH} levels"):
            parse(text, "rows.json")


def test_brackets_in_strings_are_no_levels():
    assert parse_json(json.dumps("[" * 5000 + '\\"{'), "a") == "[" * 5000 + '\\"{'


@pytest.mark.parametrize("text", ["", "{", "[1,", "nothing", '{"a": 1} {"b": 2}', "1" * 5000, '"\\ud8'])
def test_what_is_no_json_is_named(text):
    with pytest.raises(ValueError, match="line 7: not valid JSON"):
        parse_json(text, "line 7")


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "!!python/object:os.system x", "a: *b", "%YAML 9", "\x00", "a: 2024-99-99"]
)
def test_what_is_no_yaml_is_named(text):
    with pytest.raises(ValueError, match="run.yaml: not valid YAML"):
        parse_yaml(text, "run.yaml")


def test_anchors_are_read():
    text = "base: &base {a: 1, b: [2]}\nother:\n  <<: *base\n  b: 3\nlist: [*base, *base]"
    assert parse_yaml(text, "a") == yaml.safe_load(text)
    assert parse_yaml("", "a") is None


def test_an_alias_may_not_build_a_bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    start = time.perf_counter()
    with pytest.raises(ValueError, match="run.yaml: its aliases expand to more than 100,000 values"):
        parse_yaml("\n".join(lines), "run.yaml")
    with pytest.raises(ValueError, match="inside its own anchor"):
        parse_yaml("a: &x {b: [*x]}", "run.yaml")
    assert time.perf_counter() - start < 5
