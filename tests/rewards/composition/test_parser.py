"""Texts that are no compositions: what is said, and where the caret stands."""

from __future__ import annotations

import time

import pytest

from fk_reward.rewards import ExpressionError, RewardCard, load_reward, reward_card
from fk_reward.rewards.composition.composite import composite_card
from fk_reward.rewards.composition.parser import MAX_DEPTH, MAX_TOKENS, parse_expression
from fk_reward.rewards.composition.parser import ExpressionError as Error
from tests.rewards.composition.scripted import pixels

WRONG = {  # text -> (the place, what is said)
    "2 * ?": (4, r"'\?' has no meaning here"),
    "a == 2": (2, "is not allowed here"),
    "a a": (2, "is not allowed here.*made of rewards, numbers"),
    "a b": (2, "is not allowed here"),
    "a and a": (2, "is not allowed here"),
    "a**2": (2, "is not allowed here"),
    "0x10*a": (1, "is not allowed here"),
    "a = 3": (2, "is not allowed here"),
    "1 < a": (0, "is not allowed here"),
    "min(*a)": (4, "is not allowed here"),
    "(a + 1": (0, "never closed"),
    "a + 1)": (5, "Unmatched"),
    "a + 1e999": (4, "1e999 is too large"),
    "a * safe@q": (4, "One side of . must be a number, got safe@q"),
    "1/a": (2, "divides must be a number, got a"),
    "a / (2 - 2)": (0, "Division by zero"),
    "1 + 2": (0, "at least one reward"),
    " ": (0, "at least one reward"),
    "a if safe@q": (5, "one comparison"),
    "a if 0 < safe@q < 1 else 2": (5, "one comparison"),
    "foo(a)": (0, r"Functions are min\(a, b"),
    "z(a, 1)": (0, "Functions are"),
    "z(a, width=1)": (0, "Functions are"),
    "z(a, mean=safe@q)": (10, "mean must be a number, got safe@q"),
    "z(a, spread=-1)": (0, "positive, finite spread"),
    "2 + z(vqascore)": (4, r"spread of vqascore is not known: give it, z\(vqascore, spread"),
    "z(llava-reward)": (0, "no default mean: give one"),
    "llava-reward if a > 0": (0, "range of llava-reward is not known.*: write else"),
    "min(a)": (0, "at least two"),
    "z(a, mean=1, mean=2)": (13, "mean is given twice"),
    "z(a, spread=1, mean=2, spread=1)": (23, "spread is given twice"),
    "a + hps-v2": (4, "Unknown reward 'hps-v2'.*Did you mean 'hpsv2'.*Known rewards: a, .*clipscore"),
    "2*a-safe@q": (2, "Unknown reward 'a-safe@q'.*If this is a minus, put spaces around it"),
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.usefixtures("scripted")
def test_a_wrong_text_is_refused_at_its_place(text):
    place, message = WRONG[text]
    with pytest.raises(ExpressionError, match=f"(?s){message}") as caught:
        load_reward(text)
    assert caught.value.position == place
    *_, line, caret = str(caught.value).split("\n")
    assert line == f"  {text}"
    assert caret.index("^") == place + 2


def test_a_caret_stands_below_text_of_several_lines():
    with pytest.raises(ExpressionError) as caught:
        load_reward("shapes-verifier +\n\t$")
    assert str(caught.value).split("\n")[1:] == ["  shapes-verifier +  $", "                     ^"]


@pytest.mark.usefixtures("scripted")
def test_a_plain_name_keeps_its_error():
    with pytest.raises(ValueError, match="Unknown reward 'clipscoer'. Did you mean 'clipscore'") as caught:
        load_reward("clipscoer")
    assert not isinstance(caught.value, ExpressionError)
    with pytest.raises(ValueError, match="If this is a minus, put spaces around it"):
        load_reward("a-safe@q")
    with pytest.raises(ValueError, match="Unknown reward ''"):
        reward_card("")


@pytest.mark.usefixtures("scripted")
def test_options_go_to_parts():
    with pytest.raises(TypeError, match=r"\['scale'\] cannot be given to a composition: load the parts"):
        load_reward("0.5*a", scale=2.0)


def _card(name):
    return RewardCard(name=name, summary="any", typical_range=(0.0, 1.0), spread=0.1)


@pytest.mark.usefixtures("scripted")
def test_a_sum_of_six_hundred_terms_is_computed():
    reward = load_reward(" + ".join(["0.25*a", "-0.5*safe@q", "2"] * 200))
    assert reward(pixels((1, 2, 3)), "x").tolist() == [200 * (0.25 * 1 - 0.5 * 3 + 2)]


@pytest.mark.parametrize("join", [" + ", " - "])
def test_many_names_are_read_in_linear_time(join):
    names = [f"0.5*reward-{index}" for index in range(1200)]
    start = time.perf_counter()
    expression, cards = parse_expression(join.join(names), _card)
    card = composite_card(expression, cards)
    assert len(expression.names) == len(cards) == 1200
    assert str(expression) == card.name == join.join(names)
    assert time.perf_counter() - start < 5


def test_a_product_of_many_numbers():
    expression, _ = parse_expression("*".join(["2", "0.5"] * 600) + "*a / 2", _card)
    assert str(expression) == "0.5*a"
    expression, _ = parse_expression("a" + "*2" * 10 + "/2" * 9, _card)
    assert str(expression) == "2*a"


def test_products_and_sums_keep_their_order():
    expression, _ = parse_expression("8 / 2 / 2 * a - 3 - 2 + 1*b - (1 - 2)", _card)
    assert str(expression) == "2*a + b - 4"


DEEP = {
    "(" * 10_000 + "a" + ")" * 10_000: "at most",
    "(" * 1000 + "a" + ")" * 1000: "nested 50 deep",
    "(" * 1000: "nested 50 deep",
    ")" * 1000: "Unmatched",
    "- " * 1000 + "a": "nested 50 deep",
    "+ " * 4000 + "a": "nested",
    "min(a, " * 300 + "b" + ")" * 300: "nested 50 deep",
    "a if b > 0 else " * 400 + "a": "nested 50 deep",
    "a if " * 400 + "b": "nested|one comparison|not allowed here",
    "a + " * 10_000 + "a": "at most 5,000 names, numbers and signs, got 20,001",
    "a" * 100_000 + " + b": "",
    "1e5" * 3000 + "+a": "",
    "?" * 5000: "no meaning",
}


@pytest.mark.parametrize("text", DEEP, ids=lambda text: f"{text[:8]}...{len(text)}")
def test_what_is_too_deep_or_too_long_is_one_short_error(text):
    start = time.perf_counter()
    try:
        parse_expression(text, _card)
        assert text.startswith("aaa")  # a name may be long
    except Error as error:
        assert isinstance(error, ExpressionError) and len(str(error)) < 1500
        pytest.raises(Error, parse_expression, text, _card).match(DEEP[text] or ".")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("wrap", ["({})", "min({}, b)", "z({}, mean=0, spread=1)"])
def test_the_depth_that_is_allowed_works(wrap):
    text = "a"
    for _ in range(MAX_DEPTH - 1):
        text = wrap.format(text)
    expression, cards = parse_expression(text, _card)
    assert parse_expression(str(expression), _card)[0] == expression
    assert composite_card(expression, cards).typical_range is not None
    with pytest.raises(Error, match="nested 50 deep"):
        parse_expression(wrap.format(wrap.format(text)), _card)


def test_the_place_in_a_long_text_is_shown():
    text = "a + " * 400 + "?" + " + a" * 400
    with pytest.raises(Error, match="no meaning") as caught:
        parse_expression(text, _card)
    _, line, caret = str(caught.value).split("\n")
    assert caught.value.position == text.index("?")
    assert line[caret.index("^")] == "?" and line.startswith("  ... ") and line.endswith(" ...") and len(line) < 300


def test_the_bound_on_tokens_is_exact():
    text = " + ".join(["a"] * (MAX_TOKENS // 2))
    parse_expression(text, _card)
    with pytest.raises(Error, match="at most"):
        parse_expression(f"{text} + a", _card)
